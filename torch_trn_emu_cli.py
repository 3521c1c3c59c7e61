"""The command line as data: `trn-emu` reads it here, before torch is imported.

It lies beside the package because importing that imports torch, which takes seconds: help, wrong
usage and completion answer at once, and the chip is chosen before torch asks for it. A command is a
row of COMMANDS and a module of `torch_trn_emu/cli` with a function `execute(options)`.

Exit status
0    the command succeeded
1    a check failed (doctor), a difference exceeded the tolerance (diff), or the script failed
2    usage error
3    the emulator raised an error, or a file is malformed; the message says why
130  interrupted (Ctrl-C); 143: terminated (SIGTERM)
`run` exits with the script's own status.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["CHIPS", "COMMANDS", "POLICIES", "main", "parser", "prepare"]


def _data(module: str) -> Any:
    """A module of the package that needs nothing of torch, which importing the package would."""
    name = "_torch_trn_emu_data"  # a package of the same files
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(Path(__file__).parent / "torch_trn_emu")]
        sys.modules[name] = package
    return import_module(f"{name}.{module}")


CHIPS = {name: chip.lnc_choices for name, chip in _data("chip").CHIPS.items()}
POLICIES = tuple(_data("formats").POLICIES)
STATUSES = ("modelled", "computed", "inferred", "free", "not modelled")
MODES = ("eager", "compile")
_VARIABLES = {"chip": "TRN_EMU_CHIP", "lnc": "NEURON_LOGICAL_NC_CONFIG", "alias": "TRN_EMU_AS"}
# What torchrun tells a rank; the settings limit the ranks of a server to its cores.
_LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
_REFUSED = 3


def positive(text: str) -> int:
    """An integer from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def tolerance(text: str) -> float:
    """A relative difference: finite, from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be a relative difference such as 0.01, not {text!r}"
        )
    return value


class _Parser(argparse.ArgumentParser):
    """Answers wrong usage in one line, with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        self.exit(
            2, f"{self.prog}: {message}{self._suggestion(message)} (see {self.prog} --help)\n"
        )

    def _suggestion(self, message: str) -> str:
        if "invalid choice" not in message and "unrecognized" not in message:
            return ""  # the words of other messages are not names
        below = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        known = re.findall(r"[\w-]+", message.partition("choose from")[2])
        if not known or below:  # an option, or a command, which may be meant as an option
            parsers = [self, *(p for choices in below for p in choices.values())]
            known += [o for p in parsers for action in p._actions for o in action.option_strings]
        given = message.split(" (choose")[0].partition(": ")[2].removeprefix("invalid choice: ")
        words = [word.strip("'\"").split("=")[0] for word in given.split()]
        for word in words:
            near = get_close_matches(word, known, n=1, cutoff=0.6)
            if near and word not in known:
                return f". Did you mean {near[0]}?"
        return ""


Adder = Callable[[argparse.ArgumentParser], None]


def _chip_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chip")
    group.add_argument("--chip", choices=CHIPS, help="the chip (default: $TRN_EMU_CHIP, or trn3)")
    group.add_argument(
        "--lnc",
        type=int,
        choices=(1, 2),
        help="physical cores per logical core (default: 2, on trn1: 1)",
    )
    group.add_argument(
        "--matmul",
        choices=POLICIES,
        help="precision of matrix multiplies (default: mxfp8, on trn1 and trn2: bf16)",
    )


def _alias_options(parser: argparse.ArgumentParser) -> None:
    alias = parser.add_mutually_exclusive_group()
    for name, text in (("cuda", "CUDA"), ("neuron", "TorchNeuron")):
        alias.add_argument(
            f"--as-{name}",
            dest="alias",
            action="store_const",
            const=name,
            help=f"run a script written for {text}",
        )


def _script_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="as_module", action="store_true", help="SCRIPT names a module")
    parser.add_argument("script", metavar="SCRIPT", help="path of the script")
    rest = parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="passed to the script"
    )
    rest.required = False  # its error message would ask for them


def _rows(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--rows",
        type=positive,
        metavar="N",
        default=default,
        help="number of rows in each table (default: %(default)s)",
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _chip_options(parser)
    parser.add_argument(
        "--profile",
        metavar="FOLDER",
        help="write run.json, report.html (for a browser) and trace.json.gz (for Perfetto) there",
    )
    parser.add_argument(
        "--with-stack", action="store_true", help="also attribute time to source lines"
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="print memory, simulated time and operators at exit",
    )
    _alias_options(parser)
    _script_arguments(parser)


def _estimate(parser: argparse.ArgumentParser) -> None:
    _chip_options(parser)
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        default=3,
        help="optimizer steps to price (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="eager",
        help="eager: one launch for each operator; compile: one for each graph of torch.compile "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--world",
        type=positive,
        metavar="N",
        help="price the script as rank 0 of N ranks (default: $RANK of $WORLD_SIZE, if set)",
    )
    _rows(parser, 15)
    _alias_options(parser)
    _script_arguments(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run.json, or the folder it is in")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    _rows(parser, 20)


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="run.json, or the folder it is in")
    parser.add_argument("b", metavar="B", help="the run to compare with it")
    _rows(parser, 20)
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="X",
        help="exit with status 1 if a value differs by more than this, relative to A",
    )


def _coverage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="RUN", help="run.json: list only that run's operators")
    parser.add_argument("--status", choices=STATUSES, help="list only operators with this status")


def _vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder to write to")


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


# name: what it does, its options, an example
COMMANDS: dict[str, tuple[str, Adder, str]] = {
    "run": (
        "run an unmodified script on the emulated chip",
        _run,
        "trn-emu run --profile out train.py --epochs 3",
    ),
    "info": ("print chip, cores, memory, policy, host and versions", _chip_options,
             "trn-emu info --chip trn2"),
    "estimate": (
        "predict the time of a script's first steps without computing them",
        _estimate,
        "trn-emu estimate --steps 2 --mode compile train.py",
    ),
    "report": ("show a recorded run as tables or as a page", _report, "trn-emu report out"),
    "diff": (
        "compare the values, time and counters of two recorded runs",
        _diff,
        "trn-emu diff --tolerance 0.02 out/bf16 out/mxfp8",
    ),
    "coverage": (
        "list each operator's contract, how it is priced, and its calls in a run",
        _coverage,
        "trn-emu coverage --run out --status inferred",
    ),
    "doctor": ("check this installation", _nothing, "trn-emu doctor"),
    "vectors": (
        "write golden vectors for every format, scale rule and rounding",
        _vectors,
        "trn-emu vectors out/vectors",
    ),
}  # fmt: skip


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        found = []
        for name in ("torch_trn_emu", "torch"):
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                found.append(f"{name} (not installed)")
        print(f"{', '.join(found)}, Python {sys.version.split()[0]}")
        parser.exit(0)


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.exit(_REFUSED, "trn-emu: completion needs shtab: pip install shtab\n")
        print(shtab.complete(parser, shell))
        parser.exit(0)


def parser() -> argparse.ArgumentParser:
    """All commands; `trn-emu COMMAND --help` describes one."""
    about = __doc__ or ""
    top = _Parser(
        prog="trn-emu",
        description="PyTorch on an emulated AWS Trainium chip.",
        epilog="examples\n  trn-emu run --as-cuda train.py\n  trn-emu estimate train.py\n\n"
        + about[about.index("Exit status") :],
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    top.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print the completion script of a shell, for example "
        'eval "$(trn-emu --print-completion bash)"',
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_arguments, example) in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example\n  {example}",
        )
        one.add_argument("--json", action="store_true", help="print JSON")
        add_arguments(one)
    return top


def prepare(arguments: Sequence[str] | None = None) -> None:
    """Before torch is imported: answer help and wrong usage (SystemExit), choose the chip."""
    options = parser().parse_args(arguments)
    if status := _refused(options):
        raise SystemExit(status)
    _choose(options)


def _choose(options: argparse.Namespace) -> None:
    if "torch" not in sys.modules:
        for option, variable in _VARIABLES.items():
            if (value := getattr(options, option, None)) is not None:
                os.environ[variable] = str(value)
        if getattr(options, "world", None) is not None:
            os.environ.update(_LAUNCHED | dict.fromkeys(_SIZES, str(options.world)))


def _refused(options: argparse.Namespace) -> int:
    """The exit status for options that cannot work, with a line on stderr; 0 for others."""
    status, text = _problem(options) or (0, "")
    if status:
        print(f"trn-emu {options.command}: {text}", file=sys.stderr)
    return status


def _problem(options: argparse.Namespace) -> tuple[int, str] | None:
    """What is wrong with the options together: exit status and text."""
    lnc = getattr(options, "lnc", None)
    if lnc is not None:
        chip = options.chip or os.environ.get("TRN_EMU_CHIP") or "trn3"
        if lnc not in CHIPS.get(chip, (lnc,)):
            choices = " or ".join(map(str, CHIPS[chip]))
            return 2, f"--lnc {lnc}: {chip} groups {choices} physical core(s) into a logical core"
    script = getattr(options, "script", None)
    if script and not options.as_module and not Path(script).exists():
        return _REFUSED, f"{script} not found. Give a script path, or -m MODULE."
    folder = getattr(options, "profile", None)
    if folder == "":
        return 2, "--profile needs the name of a folder"
    if folder is not None:
        return _unwritable(Path(folder))
    return None


def _unwritable(folder: Path) -> tuple[int, str] | None:
    """Refuse a folder that cannot be written before a long run instead of after it."""
    probe = folder / f".{os.getpid()}.writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or str(error)
        return _REFUSED, f"cannot write to the profile folder {folder}: {why}. Choose another one."
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a script's error passes as Python prints it."""
    options = parser().parse_args(arguments)
    if status := _refused(options):
        return status
    _choose(options)
    return int(import_module("torch_trn_emu.cli").execute(options))


if __name__ == "__main__":
    sys.exit(main())
