//! What is missing on a machine, and how to mend it.

use crate::gpu::AdapterReport;

const DRIVERS: &str = "on Debian and Ubuntu, AMD and Intel GPUs want `apt-get install mesa-vulkan-drivers` (and AMD on Debian \
    `firmware-amd-graphics`), NVIDIA GPUs `apt-get install nvidia-driver` from the non-free section; the user must be allowed to \
    open /dev/dri/renderD* (group `render`), and a container must be given it (`--device /dev/dri`, for NVIDIA `--gpus all`)";

/// Mesa before this is known to be slower by a third or so on the CPU.
const MESA: u32 = 24;

/// Sentences for the person at the machine; empty where nothing is missing.
pub(super) fn advice(adapters: &[AdapterReport], chosen: Option<&AdapterReport>) -> Vec<String> {
    let mut advice = Vec::new();
    if adapters.is_empty() {
        return vec![format!("install your GPU's Vulkan driver: {DRIVERS}")];
    }
    if adapters.iter().all(|a| a.device_type == "cpu") {
        advice.push(format!("there is only an adapter that computes on the CPU; if this machine has a GPU: {DRIVERS}"));
    }
    let Some(a) = chosen else { return advice };
    if let Some(version) = mesa(a).filter(|&v| v < MESA && a.device_type == "cpu") {
        advice.push(format!(
            "Mesa {version} is old, and newer ones compute faster on the CPU: on Debian 12, enable backports and \
             `apt-get install -t bookworm-backports mesa-vulkan-drivers`"
        ));
    }
    // The two name a device in different words, and GL often cannot say of what kind it is.
    let vulkan = |b: &&AdapterReport| b.backend == "vulkan" && (same_device(a, b) || a.device_type == b.device_type);
    if let Some(b) = adapters.iter().find(vulkan).filter(|_| a.backend == "gl") {
        advice.push(format!(
            "{} is reached through GL, which is much slower than Vulkan; adapter {} is through Vulkan: --adapter {}",
            a.name, b.number, b.number
        ));
    } else if a.backend == "gl" && a.device_type != "cpu" {
        advice.push(format!("{} is reached through GL; its Vulkan driver is faster: {DRIVERS}", a.name));
    }
    let has = |name: &str| a.features.iter().any(|f| f == name);
    if !has("TIMESTAMP_QUERY") {
        advice.push("this adapter has no clock of its own: kernels are timed by the host's, less exactly".into());
    }
    if !has("SUBGROUP") {
        advice.push(
            "this adapter has no subgroup operations: kernels that use them are left out; a newer driver may help"
                .into(),
        );
    }
    advice
}

/// True if both names begin with the same word.
fn same_device(a: &AdapterReport, b: &AdapterReport) -> bool {
    let word = |a: &AdapterReport| a.name.split_whitespace().next().map(str::to_lowercase);
    word(a) == word(b)
}

/// The major version of Mesa, if that is the driver.
fn mesa(a: &AdapterReport) -> Option<u32> {
    let text = format!("{} {}", a.driver, a.driver_info);
    let version = text.split("Mesa ").nth(1)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Limits;

    fn adapter(kind: &str, backend: &str, info: &str, features: &[&str]) -> AdapterReport {
        AdapterReport {
            number: 0,
            name: "a".into(),
            driver: "llvmpipe".into(),
            driver_info: info.into(),
            backend: backend.into(),
            device_type: kind.into(),
            limits: Limits::default(),
            features: features.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn each_lack_has_its_cure() {
        let says = |a: &AdapterReport, parts: &[&str]| {
            let all = advice(std::slice::from_ref(a), Some(a));
            assert_eq!(all.len(), parts.len(), "{all:?}");
            all.iter().zip(parts).for_each(|(s, p)| assert!(s.contains(p), "{s}"));
        };
        let both = ["TIMESTAMP_QUERY", "SUBGROUP"];
        says(&adapter("discrete", "vulkan", "Mesa 22.3.6", &both), &[]);
        says(&adapter("discrete", "gl", "", &both), &["mesa-vulkan-drivers"]);
        says(
            &adapter("cpu", "vulkan", "Mesa 25.0.7-2 (LLVM 19.1.7)", &both),
            &["only an adapter that computes on the CPU"],
        );
        says(&adapter("cpu", "vulkan", "Mesa 22.3.6 (LLVM 15.0.6)", &both), &["nvidia-driver", "bookworm-backports"]);
        says(&adapter("integrated", "vulkan", "", &[]), &["no clock", "no subgroup"]);
        let (mut gl, vulkan) = (adapter("other", "gl", "", &both), adapter("discrete", "vulkan", "", &both));
        gl.number = 1;
        let said = advice(&[vulkan.clone(), gl.clone()], Some(&gl));
        assert_eq!(
            said,
            ["a is reached through GL, which is much slower than Vulkan; adapter 0 is through Vulkan: --adapter 0"]
        );
        assert!(advice(&[vulkan.clone(), gl], Some(&vulkan)).is_empty());
        assert!(advice(&[], None)[0].contains("mesa-vulkan-drivers"));
    }
}
