"""Checks a wheel's ABI against torch's and gives it the manylinux tag that it has earned.

python build_support/repair_wheel.py build/wheel dist
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from torch_choice import found

SCRIPTS = Path(sysconfig.get_path("scripts"))
VERSIONED = re.compile(rb"\b(GLIBC|GLIBCXX|CXXABI)_(\d+(?:\.\d+)+)\b")


def needed(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version of each of the C and C++ libraries' interfaces that the file names."""
    newest: dict[str, tuple[int, ...]] = {}
    for name, version in VERSIONED.findall(library.read_bytes()):
        numbers = tuple(map(int, version.split(b".")))
        newest[name.decode()] = max(newest.get(name.decode(), ()), numbers)
    return newest


def uses_new_strings(library: Path) -> bool:
    """Whether c10's functions take std::__cxx11::string: the C++11 ABI of libstdc++."""
    return b"c106detail14torchCheckFail" in (data := library.read_bytes()) and b"__cxx11" in data


def check_abi(wheel: Path) -> list[str]:
    """What of the wheel's library does not fit the torch that it was built against."""
    torch = found()
    assert torch is not None, "no torch to compare with"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.search(r"/_C[^/]*\.so$", n))
        library = Path(archive.extract(name, folder))
        built_for = archive.read("torch_trn_emu/built_for.txt").decode().strip()
        wrong = []
        if built_for != torch.version:
            wrong.append(f"built for torch {built_for}, but {torch.version} is installed")
        if uses_new_strings(library) != uses_new_strings(torch.folder / "lib/libc10.so"):
            wrong.append("the C++11 ABI of strings is not torch's")
        for interface, version in sorted(needed(library).items()):
            print(f"{interface}_{'.'.join(map(str, version))}")
    return wrong


def repair(wheel: Path, target: Path) -> None:
    """Auditwheel adds the tag; torch's own libraries stay outside of the wheel."""
    torch = found()
    assert torch is not None
    ours = {library.name for library in (torch.folder / "lib").glob("*.so*")}
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(target), str(wheel)]
    command += [part for name in sorted(ours) for part in ("--exclude", name)]
    command += ["--exclude", "libgomp*"]  # the one that torch has loaded
    path = f"{SCRIPTS}:/usr/bin:/bin"  # patchelf
    subprocess.run(command, check=True, env={"PATH": path})


def main(source: str, target: str) -> None:
    (wheel,) = Path(source).glob("*.whl")
    if wrong := check_abi(wheel):
        raise SystemExit("\n".join(wrong))
    repair(wheel, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
