#!/usr/bin/env python3
"""What Mesa's compiler for AMD's GPUs makes of Danlu's kernels, without such a GPU: registers, occupancy, and the inner loops.

    cargo run --release --example gpu_code -- FOLDER && python3 scripts/gpu_code.py FOLDER [--gpu navi31] [NAME ...]

Mesa's RADV compiles for any GPU that it knows where RADV_FORCE_FAMILY names one (navi31: Radeon RX 7900, navi21: RX 6800, vega20,
raphael_mendocino: the graphics of Ryzen 7000). Nothing can be run there, which is why `danlu` does not open such an adapter.
Needs mesa-vulkan-drivers and `pip install vulkan`. With NAMEs only kernels whose file has one of them in its name. --asm FILE keeps
the machine code.

A line is a kernel: lanes of a wave; vector registers, and those that were spilled to memory (0 wanted); bytes of shared memory; waves
that a SIMD holds at a time; instructions, and clocks of one wave by the compiler's own estimate. A line below it is a loop, outer
ones first: its instructions, of these multiply-adds, matrix products, other vector ones; loads from memory, and how often it
waits for any; accesses of shared memory; branches. Loads that wait one by one, and loops of which multiply-adds are a small part, are
what to look for.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

STATISTICS = 0x40  # VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR
# What is counted in a loop, by the names of instructions.
KINDS = {
    "fma": r"v_(dual_)?(pk_)?(fma|fmac|mad|mac|dot)\w*_f(16|32)",
    "wmma": r"v_wmma",
    "vector": r"v_",
    "loads": r"(buffer|global)_load",
    "waits": r"s_waitcnt.*vmcnt",
    "shared": r"ds_",
    "branches": r"s_c?branch",
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


def compile_all(folder, entries):
    """In a process whose environment names the GPU: a line of JSON a kernel; machine code goes to stderr, by the driver."""
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
        stage = vk.VkPipelineShaderStageCreateInfo(stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main")
        info = vk.VkComputePipelineCreateInfo(flags=STATISTICS, stage=stage, layout=layout, basePipelineIndex=-1)
        made = vk.vkCreateComputePipelines(dev, vk.VK_NULL_HANDLE, 1, [info], None)
        pipeline = made[0] if hasattr(made, "__len__") else made
        told = {"wave": e.subgroupSize for e in executables(dev, vk.VkPipelineInfoKHR(pipeline=pipeline))}
        for s in statistics(dev, vk.VkPipelineExecutableInfoKHR(pipeline=pipeline, executableIndex=0)):
            told[s.name] = s.value.u64
        print(json.dumps(told), flush=True)
        vk.vkDestroyPipeline(dev, pipeline, None)


def loops(code):
    """Instructions of every loop of a kernel, outer ones first: a branch to a block that stands before it closes one."""
    blocks, names = [[]], ["BB0"]
    for line in code.splitlines():
        label = re.match(r"(BB\d+):", line)
        if label:
            names.append(label[1])
            blocks.append([])
        elif re.match(r"\s*[a-z]+_", line):
            blocks[-1].append(line.split(";")[0].strip())
    place = {name: i for i, name in enumerate(names)}
    found = set()
    for end, block in enumerate(blocks):
        for instruction in block:
            branch = re.match(r"s_c?branch\w*\s+(BB\d+)", instruction)
            if branch and place.get(branch[1], end + 1) <= end:
                found.add((place[branch[1]], end))
    return [[i for block in blocks[start : end + 1] for i in block] for start, end in sorted(found, key=lambda f: (f[0], -f[1]))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what examples/gpu_code.rs wrote")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only kernels whose file has this in its name")
    parser.add_argument("--gpu", default="navi31", help="as RADV_FORCE_FAMILY names it (navi31)")
    parser.add_argument("--asm", type=Path, metavar="FILE", help="keep the machine code")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    index = args.folder / "index.json"
    if not index.is_file():
        sys.exit(f"{index} does not exist: cargo run --release --example gpu_code -- {args.folder}")
    entries = [e for e in json.loads(index.read_text()) if not args.names or any(n in e["file"] for n in args.names)]
    if args.compile:
        return compile_all(args.folder, entries)
    drivers = sorted(Path("/usr/share/vulkan/icd.d").glob("radeon_icd*.json"))
    if not drivers:
        sys.exit("Mesa's driver for AMD is not here: apt-get install mesa-vulkan-drivers")
    env = dict(os.environ, RADV_FORCE_FAMILY=args.gpu, RADV_DEBUG="asm,nocache", MESA_SHADER_CACHE_DISABLE="1")
    env["VK_DRIVER_FILES"] = str(drivers[0])
    done = subprocess.run([sys.executable, __file__, "--compile", args.folder, *args.names], env=env, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) != len(entries) + 1:
        sys.exit(f"{len(lines)} of {len(entries) + 1} answers came from --gpu {args.gpu}: {done.stderr[-500:]}")
    if args.asm:
        args.asm.write_text(done.stderr)
    print(lines[0]["gpu"])
    for entry, told, code in zip(entries, lines[1:], re.split(r"(?m)^BB0:", done.stderr)[1:]):
        spilled = told["Spilled VGPRs"] + told["Spilled SGPRs"]
        print(
            f"{entry['file'].removesuffix('.spv')}: wave {told['wave']}, registers {told['VGPRs']}, spilled {spilled}, "
            f"shared {told['LDS size']}, waves {told['Subgroups per SIMD']}, instructions {told['Instructions']}, "
            f"clocks {told['Latency']}"
        )
        for loop in loops(code):
            count = {kind: sum(bool(re.match(pattern, i)) for i in loop) for kind, pattern in KINDS.items()}
            count["vector"] -= count["fma"] + count["wmma"]
            print(f"    loop of {len(loop)}: " + ", ".join(f"{kind} {n}" for kind, n in count.items() if n))


if __name__ == "__main__":
    main()
