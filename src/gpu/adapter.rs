//! Which adapters there are, what they can do, and which one to take.

use crate::base::{AdapterId, Limits};
use crate::error::{Error, Result};

/// What one adapter says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AdapterReport {
    /// Its number in [`list`], best first.
    pub number: usize,
    /// Its name as the driver gives it.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version.
    pub driver_info: String,
    /// `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub device_type: String,
    /// What shapes kernels and memory plans.
    pub limits: Limits,
    /// Optional features, by wgpu's names.
    pub features: Vec<String>,
}

impl AdapterReport {
    /// The key under which measurements are kept.
    pub fn id(&self) -> AdapterId {
        AdapterId { name: self.name.clone(), driver: self.driver_line(), backend: self.backend.clone() }
    }

    /// The driver and its version; either may be empty.
    pub fn driver_line(&self) -> String {
        format!("{} {}", self.driver, self.driver_info).trim().to_string()
    }

    /// One line for lists and messages.
    pub fn line(&self) -> String {
        let driver = self.driver_line();
        format!("{}: {} ({}, {}, {driver})", self.number, self.name, self.device_type, self.backend)
    }
}

/// How the user names an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selector {
    /// Discrete before integrated before virtual before CPU, native interfaces before GL.
    #[default]
    Automatic,
    /// By the number in [`list`].
    Number(usize),
    /// By a part of its name, in any case.
    Name(String),
}

impl From<&str> for Selector {
    /// `auto` or nothing, a number, or a part of a name.
    fn from(text: &str) -> Self {
        match text.trim() {
            "" | "auto" => Selector::Automatic,
            t => t.parse().map_or_else(|_| Selector::Name(t.to_string()), Selector::Number),
        }
    }
}

/// Whether a number such as 4090 is a word of the adapter's name: cards are known by numbers, too, of three digits or more.
fn is_called(adapter: &AdapterReport, number: usize) -> bool {
    let is_word = |word: &str| word.parse() == Ok(number);
    // What stands in brackets is about drivers.
    let name = adapter.name.split('(').next().unwrap_or_default();
    number > 99 && name.split(|c: char| !c.is_alphanumeric()).any(is_word)
}

const NO_ADAPTER: &str = "no GPU adapter was found, not even one that computes on the CPU. Install your GPU's Vulkan driver; for \
    an adapter on the CPU, on Debian or Ubuntu: `apt-get install mesa-vulkan-drivers`, on Fedora: `dnf install mesa-vulkan-drivers`, \
    on Arch: `pacman -S vulkan-swrast`";

impl Selector {
    /// The chosen adapter's number, and a sentence that says why it was taken.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none at all (with what to install), or none that fits (with what there is).
    pub fn choose(&self, adapters: &[AdapterReport]) -> Result<(usize, String)> {
        let Some(first) = adapters.first() else { return Err(Error::Adapter(NO_ADAPTER.into())) };
        let found = match self {
            Selector::Automatic => Some(first),
            Selector::Number(n) => adapters.get(*n).or_else(|| adapters.iter().find(|a| is_called(a, *n))),
            Selector::Name(part) => {
                let part = part.to_lowercase();
                adapters.iter().find(|a| a.name.to_lowercase().contains(&part))
            }
        };
        let wanted = match self {
            Selector::Automatic => "automatic".to_string(),
            Selector::Number(n) => format!("number {n}"),
            Selector::Name(part) => format!("name `{part}`"),
        };
        let Some(a) = found else {
            let lines: Vec<String> = adapters.iter().map(AdapterReport::line).collect();
            return Err(Error::Adapter(format!("no adapter fits {wanted}; there are: {}", lines.join("; "))));
        };
        let why = match (self, adapters.len()) {
            (Selector::Automatic, 1) => "it is the only one".to_string(),
            (Selector::Automatic, n) => format!("of {n} adapters, {} through {} comes first", a.device_type, a.backend),
            _ => format!("it fits {wanted}"),
        };
        Ok((a.number, format!("adapter {} ({}) was taken: {why}", a.number, a.name)))
    }
}

impl Selector {
    /// An adapter for each of so many ranks of one machine: of those that are alike (one kind, behind one interface) and that the
    /// name fits, one each. An adapter that computes on the CPU is shared by all; another one only where `share` says so.
    ///
    /// # Errors
    /// As [`Selector::choose`]; if there are fewer than ranks.
    pub fn spread(&self, adapters: &[AdapterReport], ranks: usize, share: bool) -> Result<Vec<usize>> {
        let all = self.alike(adapters)?;
        if ranks > all.len() && !share && !all[0].limits.is_cpu {
            let lines: Vec<String> = all.iter().map(|a| a.line()).collect();
            let has = if all.len() == 1 { "adapter fits" } else { "adapters fit" };
            return Err(Error::Invalid(format!(
                "{ranks} ranks want an adapter each, and {} {has}: {}; choose a smaller mesh, or let several ranks share an \
                 adapter, with --share-adapter",
                all.len(),
                lines.join("; ")
            )));
        }
        Ok((0..ranks).map(|rank| all[rank % all.len()].number).collect())
    }

    /// The adapters that ranks of one machine may have, at least one.
    ///
    /// # Errors
    /// As [`Selector::choose`].
    pub fn alike<'a>(&self, adapters: &'a [AdapterReport]) -> Result<Vec<&'a AdapterReport>> {
        let (first, _) = self.choose(adapters)?;
        let is_alike = |a: &&AdapterReport| {
            (&a.backend, &a.device_type) == (&adapters[first].backend, &adapters[first].device_type)
        };
        let fits = |a: &&AdapterReport| match self {
            Selector::Automatic => true,
            Selector::Number(n) if *n >= adapters.len() => is_called(a, *n),
            Selector::Number(n) => a.number == *n,
            Selector::Name(part) => a.name.to_lowercase().contains(&part.to_lowercase()),
        };
        Ok(adapters.iter().filter(is_alike).filter(fits).collect())
    }
}

/// All adapters, the one that automatic selection takes first.
pub async fn list() -> Vec<AdapterReport> {
    adapters().await.into_iter().map(|(_, report)| report).collect()
}

/// Adapters with their reports, best first. Errors of single drivers are left to wgpu, which skips them.
pub(super) async fn adapters() -> Vec<(wgpu::Adapter, AdapterReport)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut all = instance.enumerate_adapters(wgpu::Backends::all()).await;
    // Stable, so that equals keep the order of the system.
    all.sort_by_key(rank);
    all.retain(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    all.into_iter()
        .enumerate()
        .map(|(number, a)| {
            let report = report(number, &a);
            (a, report)
        })
        .collect()
}

fn rank(adapter: &wgpu::Adapter) -> (u8, u8) {
    let info = adapter.get_info();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, u8::from(info.backend == wgpu::Backend::Gl))
}

fn report(number: usize, adapter: &wgpu::Adapter) -> AdapterReport {
    let info = adapter.get_info();
    let device_type = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::Other => "other",
    };
    let features = adapter.features().iter_names().map(|(name, _)| name.to_string()).collect();
    AdapterReport {
        number,
        name: info.name.clone(),
        driver: info.driver.clone(),
        driver_info: info.driver_info.clone(),
        backend: info.backend.to_str().to_string(),
        device_type: device_type.to_string(),
        limits: limits(adapter, &adapter.limits(), adapter.features()),
        features,
    }
}

/// wgpu's limits as the plain data that the compiler sees.
pub(super) fn limits(adapter: &wgpu::Adapter, l: &wgpu::Limits, features: wgpu::Features) -> Limits {
    let info = adapter.get_info();
    let alignment = l.min_storage_buffer_offset_alignment.max(l.min_uniform_buffer_offset_alignment).max(16);
    let cooperative = if features.contains(COOPERATIVE) { cooperative(adapter) } else { Vec::new() };
    let [min_subgroup, max_subgroup] = subgroups(&info, &cooperative);
    // Windows over a tensor, and tensors in a buffer, start at multiples of the alignment, so their length is one too.
    let whole = |bytes: u64| bytes / u64::from(alignment) * u64::from(alignment);
    Limits {
        max_binding_bytes: whole(l.max_storage_buffer_binding_size.min(l.max_buffer_size)),
        max_buffer_bytes: whole(l.max_buffer_size.min(Limits::COUNTABLE_BYTES)),
        binding_alignment: u64::from(alignment),
        max_storage_bindings: l.max_storage_buffers_per_shader_stage,
        max_workgroups: l.max_compute_workgroups_per_dimension,
        max_invocations: l.max_compute_invocations_per_workgroup,
        max_shared_bytes: l.max_compute_workgroup_storage_size,
        min_subgroup,
        max_subgroup,
        is_cpu: info.device_type == wgpu::DeviceType::Cpu,
        has_f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative,
        memory_bytes: match info.device_type {
            wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu => host_memory(),
            _ => device_memory(adapter),
        },
    }
}

/// The smallest and the largest subgroup. wgpu does not ask Metal and says 4 to 64; on Apple's own GPUs, of those that have
/// cooperative matrices, a SIMD group has 32 threads.
fn subgroups(info: &wgpu::AdapterInfo, cooperative: &[u32]) -> [u32; 2] {
    match info.backend {
        wgpu::Backend::Metal if info.name.starts_with("Apple") && !cooperative.is_empty() => [32, 32],
        _ => [info.subgroup_min_size, info.subgroup_max_size],
    }
}

/// Cooperative matrices, and the f16 that their operands are.
pub(super) const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Sizes of square products of f16 with sums in f32.
fn cooperative(adapter: &wgpu::Adapter) -> Vec<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let all = adapter.cooperative_matrix_properties();
    let is_there = |&size: &u32| {
        all.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [size; 3] && (p.ab_type, p.cr_type) == (F16, F32))
    };
    // Those that WGSL has.
    [8, 16].into_iter().filter(is_there).collect()
}

/// Bytes of the largest heap of the device's own memory, whoever else uses of it; `None` where its interface does not say.
/// wgpu has no word for it.
#[cfg(any(windows, target_os = "linux"))]
fn device_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: what it gives is asked, not changed or destroyed, and dropped before the adapter.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, device) = (vulkan.shared_instance().raw_instance(), vulkan.raw_physical_device());
    // SAFETY: the device is of this instance, and both live as long as `vulkan`.
    let memory = unsafe { instance.get_physical_device_memory_properties(device) };
    let heaps = memory.memory_heaps.iter().take(memory.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(any(windows, target_os = "linux")))]
fn device_memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Bytes of host memory that can be had without swapping, which CPU and integrated adapters share; `None` where the
/// system does not say.
pub fn host_memory() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(number: usize, name: &str) -> AdapterReport {
        AdapterReport {
            number,
            name: name.into(),
            driver: "d".into(),
            driver_info: "1".into(),
            backend: "vulkan".into(),
            device_type: "cpu".into(),
            limits: Limits::default(),
            features: Vec::new(),
        }
    }

    #[test]
    fn host_memory_is_read() {
        let text = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(available(text), Some(12_288_000_000));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
        assert_eq!(available("MemAvailable: many\n"), None);
        assert_eq!(host_memory().is_some(), cfg!(target_os = "linux"));
    }

    #[test]
    fn subgroups_of_metal_are_known_where_it_has_matrices() {
        let of = |backend, name: &str, said: [u32; 2], cooperative: &[u32]| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, backend);
            (info.name, info.subgroup_min_size, info.subgroup_max_size) = (name.into(), said[0], said[1]);
            subgroups(&info, cooperative)
        };
        use wgpu::Backend::{Metal, Vulkan};
        assert_eq!(of(Metal, "Apple M2", [4, 64], &[8]), [32, 32]);
        assert_eq!(of(Metal, "Apple A9", [4, 64], &[]), [4, 64]);
        assert_eq!(of(Metal, "AMD Radeon Pro 5500M", [4, 64], &[8]), [4, 64]);
        assert_eq!(of(Vulkan, "AMD Radeon RX 7900 XT (RADV NAVI31)", [32, 64], &[16]), [32, 64]);
    }

    #[test]
    #[cfg(any(windows, target_os = "linux"))]
    fn vulkan_says_how_much_memory_a_device_has() {
        let adapters = pollster::block_on(adapters());
        let vulkan = || adapters.iter().filter(|(_, report)| report.backend == "vulkan");
        if vulkan().next().is_none() {
            eprintln!("SKIPPED: there is no Vulkan adapter");
        }
        // More than a page, and less than any machine has: a count, and not a pointer or a number of heaps.
        assert!(vulkan().all(|(a, _)| device_memory(a).is_some_and(|bytes| (1 << 20..1 << 50).contains(&bytes))));
        assert!(adapters.iter().all(|(a, report)| report.backend != "gl" || device_memory(a).is_none()));
    }

    #[test]
    fn selectors_find_and_explain() {
        let all = [adapter(0, "Radeon X"), adapter(1, "llvmpipe")];
        assert_eq!(Selector::from("auto").choose(&all).unwrap().0, 0);
        assert_eq!(Selector::from("1").choose(&all).unwrap().0, 1);
        assert_eq!(Selector::from("LLVM").choose(&all).unwrap().0, 1);
        // A number that no adapter has is a word of a name where it is a card's, and nothing else.
        let cards = [adapter(0, "NVIDIA GeForce RTX 4070"), adapter(1, "NVIDIA GeForce RTX 4090"), all[1].clone()];
        assert_eq!(Selector::from("4090").choose(&cards).unwrap().0, 1);
        assert_eq!(Selector::from("4090").spread(&cards, 1, false).unwrap(), [1]);
        for number in ["3", "70", "407", "99"] {
            assert!(Selector::from(number).choose(&cards).is_err(), "{number}");
        }
        let none = Selector::from("geforce").choose(&all).unwrap_err().to_string();
        assert_eq!(
            none,
            "no adapter fits name `geforce`; there are: 0: Radeon X (cpu, vulkan, d 1); 1: llvmpipe (cpu, vulkan, d 1)"
        );
        assert!(Selector::Automatic.choose(&[]).unwrap_err().to_string().contains("mesa-vulkan-drivers"));
    }

    #[test]
    fn ranks_get_an_adapter_each_and_share_one_where_that_is_no_loss() {
        let gpu = |number, name| AdapterReport { device_type: "discrete".into(), ..adapter(number, name) };
        let cpu = |number| AdapterReport {
            limits: Limits { is_cpu: true, ..Limits::default() },
            ..adapter(number, "llvmpipe")
        };
        let gl = AdapterReport { backend: "gl".into(), ..gpu(2, "H100") };
        let all = [gpu(0, "H100"), gpu(1, "H100"), gl, cpu(3)];
        let spread = |text: &str, ranks, share| Selector::from(text).spread(&all, ranks, share);
        assert_eq!(spread("auto", 2, false).unwrap(), [0, 1], "one interface to each");
        assert_eq!(spread("h100", 3, true).unwrap(), [0, 1, 0]);
        assert_eq!(spread("llvm", 3, false).unwrap(), [3, 3, 3]);
        assert_eq!(spread("1", 2, true).unwrap(), [1, 1]);
        let said = spread("auto", 3, false).unwrap_err().to_string();
        assert!(
            said.starts_with("3 ranks want an adapter each, and 2 adapters fit: 0: H100 (discrete, vulkan, d 1); 1: ")
        );
        assert!(said.ends_with("choose a smaller mesh, or let several ranks share an adapter, with --share-adapter"));
        let said = spread("0", 2, false).unwrap_err().to_string();
        assert!(said.contains("and 1 adapter fits: 0: H100"), "{said}");
        assert!(Selector::Automatic.spread(&[], 1, false).is_err());
    }
}
