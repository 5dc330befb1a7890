"""What Mesa's compilers make of Danlu's kernels for GPUs that are not there: registers, occupancy, and the inner loops.

    cargo run --release --example gpu_code -- FOLDER && python3 scripts/gpu_code.py FOLDER [--gpu navi31] [NAME ...]
    cargo run --release --example gpu_code -- FOLDER intel && python3 scripts/gpu_code.py FOLDER --shim LIBRARY [--gpu dg2] [NAME ...]

Nothing can be run there, which is why `danlu` does not open such an adapter. Needs mesa-vulkan-drivers and `pip install vulkan`. With
NAMEs only kernels whose file has one of them in its name. --asm FILE keeps the machine code.

AMD: Mesa's RADV compiles for any GPU that it knows where RADV_FORCE_FAMILY names one (navi31: Radeon RX 7900, navi21: RX 6800, vega20,
raphael_mendocino: the graphics of Ryzen 7000). Intel and NVIDIA: ANV and NVK do so where Mesa's drm-shim, which is preloaded, says
that there is a GPU: libintel_noop_drm_shim.so for tgl (Iris Xe), dg2 (Arc A), mtl, lnl (Lunar Lake, limits xe2), bmg (Arc B);
libnouveau_noop_drm_shim.so for chipsets 162 (Turing) and 172 (Ampere). docs/benchmarks.md says how to build them.

A line is a kernel: lanes of a wave; registers of a lane (Intel: the most that live at a time, of a wave, of 128), and those that were
spilled to memory (0 wanted); bytes of shared memory; waves that fit at a time; instructions, and clocks of one wave by the compiler's
own estimate. A line below it is a loop, outer ones first: its instructions, of these multiply-adds, matrix products, other
ones that compute; loads from memory, and how often it waits for any; what was spilled and comes back; accesses of shared memory;
branches. Loads that wait one by one, and loops of which multiply-adds are a small part, are what to look for.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

CAPTURE = 0x40 | 0x80  # VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR, …_INTERNAL_REPRESENTATIONS_BIT_KHR
VARYING = 1  # VK_PIPELINE_SHADER_STAGE_CREATE_ALLOW_VARYING_SUBGROUP_SIZE_BIT, as wgpu has it
# Of each vendor: its driver; the variable that names a GPU, and one of them; by what names the driver tells what a line has; and in its
# machine code what is an instruction, a label, a branch to one (or the end of a loop), a line behind which
# nothing goes on, and what is counted in a loop. A line that
# begins with four blanks goes on with Intel's instruction before it.
VENDORS = {
    "amd": {
        "driver": "radeon_icd*.json",
        "variable": "RADV_FORCE_FAMILY",
        "gpu": "navi31",
        "told": {
            "registers": r"VGPRs",
            "spilled": r"Spilled [VS]GPRs",
            "shared": r"LDS size",
            "waves": r"Subgroups per SIMD",
            "instructions": r"Instructions",
            "clocks": r"Latency",
        },
        "instruction": r"\s*([a-z]+_.*)",
        "label": r"(BB\d+):",
        "branch": r"s_c?branch\w*\s+(BB\d+)",
        "leaves": r"\s*s_(branch|endpgm)",
        "kinds": {
            "fma": r"v_(dual_)?(pk_)?(fma|fmac|mad|mac|dot)\w*_f(16|32)",
            "wmma": r"v_wmma",
            "vector": r"v_",
            "loads": r"(buffer|global)_load",
            "waits": r"s_waitcnt.*vmcnt",
            "spills": r"scratch_",
            "shared": r"ds_",
            "branches": r"s_c?branch",
        },
    },
    "intel": {
        "driver": "intel_icd*.json",
        "variable": "INTEL_STUB_GPU_PLATFORM",
        "gpu": "dg2",
        "told": {
            "registers": r"Max live registers",
            "spilled": r"Spill(s| Count)",
            "shared": r"Workgroup Memory Size",
            "instructions": r"Instruction(s| Count)",
            "clocks": r"Cycle(s| Count)",
        },
        "instruction": r"(?:\([^)]*\) *)?([a-z][\w.]*[ (].*)",
        "label": r"(LABEL\d+):",
        "branch": r"while\(.*JIP: *(LABEL\d+)",
        "leaves": r"(?!)",
        "kinds": {
            "fma": r"(mad|mac)\(\d+\) .*<1>H?F",
            "vector": r"(?!send|sync|if|else|endif|while|break|cont|halt)\w",
            "loads": r"send.*(ugm.*load(?!.* ss )|hdc|dc[01].*read)",
            "waits": r".*\$\d+\.dst",
            "spills": r"send.*(ugm.* ss |scratch)",
            "shared": r"send.*(slm|SLM)",
            "branches": r"if|else|while|break|cont|halt",
        },
    },
    "nvidia": {
        "driver": "nouveau_icd*.json",
        "variable": "NOUVEAU_CHIPSET",
        "gpu": "172",
        "told": {
            "registers": r"Number of GPRs",
            "spilled": r"Spills to memory",
            "waves": r"Max warps/SM",
            "instructions": r"Instruction count",
            "clocks": r"Static cycle count",
        },
        "instruction": r"\s+(?:@\S+ +)?(?:[^=]* = )?([a-z].*)",
        "label": r"block\S* \d+ (L\d+)",
        "branch": r"bra .*\b(L\d+)",
        "leaves": r"\s+(bra pT|exit)",
        "kinds": {
            "fma": r"[fh]fma",
            "mma": r"[hi]mma",
            "vector": r"(?!ld|st|bra|b?sync|bssy|bclear|break|nop|bar|u|exit)\w",
            "loads": r"ld\.global",
            "spills": r"(ld|st)\.local",
            "shared": r"(ld|st)\.shared|ldsm",
            "branches": r"bra",
        },
    },
}


def device(vk):
    """A device of the first adapter, with what kernels ask for."""
    instance = vk.vkCreateInstance(
        vk.VkInstanceCreateInfo(pApplicationInfo=vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 3, 0))), None
    )
    adapter = vk.vkEnumeratePhysicalDevices(instance)[0]
    known = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(adapter, None)}
    wanted = [e for e in ("VK_KHR_pipeline_executable_properties", "VK_KHR_cooperative_matrix") if e in known]
    chain = vk.VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR(pipelineExecutableInfo=1)
    if "VK_KHR_cooperative_matrix" in wanted:
        chain = vk.VkPhysicalDeviceCooperativeMatrixFeaturesKHR(pNext=chain, cooperativeMatrix=1)
    chain = vk.VkPhysicalDeviceVulkan11Features(pNext=chain, storageBuffer16BitAccess=1)
    chain = vk.VkPhysicalDeviceVulkan12Features(pNext=chain, shaderFloat16=1, vulkanMemoryModel=1)
    queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, queueCount=1, pQueuePriorities=[1.0])
    info = vk.VkDeviceCreateInfo(
        pNext=chain,
        queueCreateInfoCount=1,
        pQueueCreateInfos=[queue],
        pEnabledFeatures=vk.VkPhysicalDeviceFeatures(shaderInt16=1, shaderInt64=1),
        enabledExtensionCount=len(wanted),
        ppEnabledExtensionNames=wanted,
    )
    return vk.vkGetPhysicalDeviceProperties(adapter).deviceName, vk.vkCreateDevice(adapter, info, None)


def machine_code(vk, dev, executable):
    """The last form in which the driver has a kernel: the text of its machine code."""
    from vulkan._vulkan import ffi, lib

    name = "vkGetPipelineExecutableInternalRepresentationsKHR"
    ask = ffi.cast(f"PFN_{name}", lib.vkGetDeviceProcAddr(dev, name.encode()))
    executable, count = ffi.addressof(executable), ffi.new("uint32_t *")
    ask(dev, executable, count, ffi.NULL)
    empty = {"sType": vk.VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR}
    forms = ffi.new("VkPipelineExecutableInternalRepresentationKHR[]", [empty] * count[0])
    ask(dev, executable, count, forms)
    last = forms[count[0] - 1]
    text = ffi.new("char[]", last.dataSize)
    last.pData = text
    ask(dev, executable, count, forms)
    return ffi.string(text).decode()


def compile_all(folder, entries):
    """In a process whose environment names the GPU: a line of JSON a kernel."""
    import vulkan as vk

    name, dev = device(vk)
    print(json.dumps({"gpu": name}), flush=True)
    statistics = vk.vkGetDeviceProcAddr(dev, "vkGetPipelineExecutableStatisticsKHR")
    executables = vk.vkGetDeviceProcAddr(dev, "vkGetPipelineExecutablePropertiesKHR")
    for entry in entries:
        code = (folder / entry["file"]).read_bytes()
        module = vk.vkCreateShaderModule(dev, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
        bindings = [
            vk.VkDescriptorSetLayoutBinding(
                binding=number,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER if uniform else vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                descriptorCount=1,
                stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for number, uniform in entry["bindings"]
        ]
        layout = vk.VkDescriptorSetLayoutCreateInfo(bindingCount=len(bindings), pBindings=bindings)
        layouts = [vk.vkCreateDescriptorSetLayout(dev, layout, None)]
        layout = vk.vkCreatePipelineLayout(dev, vk.VkPipelineLayoutCreateInfo(setLayoutCount=1, pSetLayouts=layouts), None)
        stage = vk.VkPipelineShaderStageCreateInfo(
            flags=VARYING, stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main"
        )
        info = vk.VkComputePipelineCreateInfo(flags=CAPTURE, stage=stage, layout=layout, basePipelineIndex=-1)
        made = vk.vkCreateComputePipelines(dev, vk.VK_NULL_HANDLE, 1, [info], None)
        pipeline = made[0] if hasattr(made, "__len__") else made
        executable = vk.VkPipelineExecutableInfoKHR(pipeline=pipeline, executableIndex=0)
        told = {"wave": e.subgroupSize for e in executables(dev, vk.VkPipelineInfoKHR(pipeline=pipeline))}
        for s in statistics(dev, executable):
            told[s.name] = s.value.u64
        told["code"] = machine_code(vk, dev, executable)
        print(json.dumps(told), flush=True)
        vk.vkDestroyPipeline(dev, pipeline, None)


def loops(vendor, code):
    """Instructions of every loop of a kernel, outer ones first. A branch to a block that stands before it closes one; of it are the
    blocks from which that branch is reached without the first: not all that stand between them, since NVIDIA's are in no such order.
    """
    blocks, place, falls = [[]], {}, [True]
    for line in code.splitlines():
        label = re.match(vendor["label"], line)
        instruction = re.match(vendor["instruction"], line)
        if label:
            place[label[1]] = len(blocks)
            blocks.append([])
            falls.append(True)
        elif instruction:
            blocks[-1].append(instruction[1])
            falls[-1] = not re.match(vendor["leaves"], line)
        elif line.startswith("    ") and blocks[-1]:
            blocks[-1][-1] += line
    before = [{i - 1} if i and falls[i - 1] else set() for i in range(len(blocks))]
    ends = {}
    for end, block in enumerate(blocks):
        for branch in filter(None, (re.match(vendor["branch"], instruction) for instruction in block)):
            start = place.get(branch[1])
            if start is not None:
                before[start].add(end)
                if start <= end:
                    ends.setdefault(start, set()).add(end)
    found = []
    for start, reached in ends.items():
        body, todo = {start}, list(reached)
        while todo:
            block = todo.pop()
            if block not in body:
                body.add(block)
                todo.extend(before[block])
        found.append((start, -len(body), [i for block in sorted(body) for i in blocks[block]]))
    return [loop for *_, loop in sorted(found)]


def report(vendor, entry, told):
    """A line of a kernel, and one of each of its loops."""
    columns = {"wave": told["wave"]}
    for column, name in vendor["told"].items():
        columns[column] = sum(value for key, value in told.items() if re.fullmatch(name, key))
    print(f"{entry['file'].removesuffix('.spv')}: " + ", ".join(f"{column} {value}" for column, value in columns.items()))
    for loop in loops(vendor, told["code"]):
        count = {kind: sum(bool(re.match(pattern, i)) for i in loop) for kind, pattern in vendor["kinds"].items()}
        count["vector"] -= sum(count.get(kind, 0) for kind in ("fma", "wmma", "mma"))
        print(f"    loop of {len(loop)}: " + ", ".join(f"{kind} {n}" for kind, n in count.items() if n))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what examples/gpu_code.rs wrote")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only kernels whose file has this in its name")
    parser.add_argument("--shim", type=Path, metavar="LIBRARY", help="Mesa's drm-shim for Intel or NVIDIA (without it AMD)")
    parser.add_argument("--gpu", help="as the driver or the shim names it (navi31, dg2, 172)")
    parser.add_argument("--asm", type=Path, metavar="FILE", help="keep the machine code")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    index = args.folder / "index.json"
    if not index.is_file():
        sys.exit(f"{index} does not exist: cargo run --release --example gpu_code -- {args.folder}")
    entries = [e for e in json.loads(index.read_text()) if not args.names or any(n in e["file"] for n in args.names)]
    if args.compile:
        return compile_all(args.folder, entries)
    shim = args.shim.resolve() if args.shim else None
    whose = "amd" if not shim else "intel" if "intel" in shim.name else "nvidia"
    vendor = VENDORS[whose]
    gpu = args.gpu or vendor["gpu"]
    drivers = sorted(Path("/usr/share/vulkan/icd.d").glob(vendor["driver"]))
    if not drivers:
        sys.exit(f"Mesa's driver for {whose} is not here: apt-get install mesa-vulkan-drivers")
    env = dict(os.environ, MESA_SHADER_CACHE_DISABLE="1", VK_DRIVER_FILES=str(drivers[0]))
    env[vendor["variable"]] = gpu
    if shim:
        env["LD_PRELOAD"] = str(shim)
    done = subprocess.run([sys.executable, __file__, "--compile", args.folder, *args.names], env=env, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) != len(entries) + 1:
        sys.exit(f"{len(lines)} of {len(entries) + 1} answers came from {gpu}: {done.stderr[-500:]}")
    if args.asm:
        args.asm.write_text("\n".join(f"{entry['file']}\n{told['code']}" for entry, told in zip(entries, lines[1:])))
    print(lines[0]["gpu"])
    for entry, told in zip(entries, lines[1:]):
        report(vendor, entry, told)


if __name__ == "__main__":
    main()
