"""Headers for compiling XDP programs where no kernel headers are installed.

BCC looks for a kernel source tree. Our programs need UAPI only, which the C library's kernel
headers have. So a tree of a few files of our own is made, which stand for what BCC and those
headers expect, and the compiler finds everything else where the system has it.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

SYSTEM_HEADERS = Path("/usr/include")
_ARCH = {"x86_64": ("x86", "x86_64-linux-gnu"), "aarch64": ("arm64", "aarch64-linux-gnu")}

_INCLUDED = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)

_KCONFIG = """\
#pragma once
#define CONFIG_BPF_SYSCALL 1
#undef __KERNEL__ /* BCC defines it; the UAPI headers are meant for user space */
"""
_VERSION = """\
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE {code}
"""
_TYPES = """\
#pragma once
#include <asm/types.h>
#include <linux/posix_types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __le32;
typedef __u32 __be32;
typedef __u64 __le64;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef unsigned __poll_t;
typedef unsigned long uintptr_t;
typedef __kernel_size_t size_t;
typedef _Bool bool;
typedef __u8 uint8_t;
typedef __u16 uint16_t;
typedef __u32 uint32_t;
typedef __u64 uint64_t;
typedef __s32 pid_t;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __aligned_be64 __be64 __attribute__((aligned(8)))
#define __bitwise
#define NULL ((void *)0)
"""


def _version_code() -> int:
    """The running kernel's version as LINUX_VERSION_CODE has it."""
    numbers = platform.release().split("-")[0].split("+")[0].split(".")
    major, minor, patch = (int(number) for number in [*numbers, "0", "0"][:3])
    return (major << 16) + (minor << 8) + min(patch, 255)


def missing() -> str | None:
    """What of the system's headers is not there, in words; None if all is."""
    arch = _ARCH.get(platform.machine())
    if arch is None:
        return f"no XDP programs for {platform.machine()}"
    for path in (SYSTEM_HEADERS / "linux/if_ether.h", SYSTEM_HEADERS / arch[1] / "asm/types.h"):
        if not path.exists():
            return f"{path} is not there (Debian: apt install linux-libc-dev)"
    return None


def search_paths() -> list[str]:
    """Compiler flags that let the system's headers be found after the tree's."""
    _, triplet = _ARCH[platform.machine()]
    return [f"-isystem{SYSTEM_HEADERS / triplet}", f"-isystem{SYSTEM_HEADERS}"]


def ours() -> dict[str, str]:
    """The tree's files, by their names under its include directory."""
    return {
        "linux/kconfig.h": _KCONFIG,
        "linux/version.h": _VERSION.format(code=_version_code()),
        "linux/log2.h": "#pragma once\n",
        "linux/types.h": _TYPES,
        "linux/bpf.h": "#include <bcc/bpf.h>\n",  # BCC carries its own
        "uapi/linux/bpf.h": "#include <bcc/bpf.h>\n",
        # By its full name: `uapi` itself is on BCC's search path, and this file would find itself.
        "uapi/linux/if_packet.h": f'#include "{SYSTEM_HEADERS}/linux/if_packet.h"\n',
        "asm/page.h": "#pragma once\n#define PAGE_SIZE 4096UL\n",
    }


def make_tree(root: Path) -> None:
    """Fill an empty directory of ours with the tree that BCC_KERNEL_SOURCE is to name."""
    kernel_arch, _ = _ARCH[platform.machine()]
    include = root / "include"
    for part in ("linux", "uapi/linux", "asm"):
        (include / part).mkdir(parents=True)
    (root / "arch" / kernel_arch / "include").mkdir(parents=True)
    for name, text in ours().items():
        with (include / name).open("x") as file:
            file.write(text)


def included(*texts: str) -> dict[str, bytes]:
    """What these texts include of the system's headers, and what those do, by path.

    Read without a preprocessor: what stands under a condition is in it, too. A header that BCC
    carries itself is in neither directory, and not in it.
    """
    found: dict[str, bytes] = {}
    names = [name for text in (*texts, *ours().values()) for name in _INCLUDED.findall(text)]
    _, triplet = _ARCH[platform.machine()]
    while names:
        name = names.pop()
        for root in (SYSTEM_HEADERS / triplet, SYSTEM_HEADERS):
            path = str(root / name)  # `name` itself where that is a whole path
            if path in found or not Path(path).is_file():
                continue
            found[path] = Path(path).read_bytes()
            names += _INCLUDED.findall(found[path].decode(errors="replace"))
    return found
