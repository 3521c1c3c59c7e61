"""How large `ops` and `kernels` are, by family, beside the package that they replaced.

    python docs/house_size.py [REVISION]

Prints the table of docs/decisions/0017-size-of-ops-and-kernels.md: lines of Python in `lowering`
where it began (`BEFORE`), and in `ops` and `kernels` at a revision, HEAD by default. A file belongs
to the first family whose pattern its path matches.
"""

import re
import subprocess
import sys

BEFORE = "ec58996"  # the last revision before the review that set the goal
FAMILIES = (  # name, files of lowering/, files of ops/ and kernels/
    ("products", r"products|matmul|blocking|operand|epilogue|evacuation|pipelining",
     r"products|matmul/|pipelining"),
    ("convolution", r"conv_|convolution|depthwise|few_channels|windows",
     r"convolution|/window"),
    ("attention", r"attended|attention", r"attention"),
    ("rows: softmax, norms, regions",
     r"row_|rows|normaliz|absorbing|sharing", r"rows/|normalization"),
    ("batch and group norm", r"channel_|norms|norm_tiles|planes",
     r"batch_norm|channel_sums|planes"),
    ("reductions", r"reduction|moments|columns|selections",
     r"reduc|variance|kernels/columns|row_max"),
    ("sorting, scans, search", r"sorting|scans|searches|network|keys|ranks|distinct",
     r"sort|scan|search|kth|rank_by|unique|largest_of|down_columns|row_by_row|pieces"),
    ("pooling, patches, resampling", r"pool|adaptive|patches|resampling",
     r"pooling|bands|im2col|interpolation"),
    ("copies, indexing",
     r"copies|moving|movement|placements|re(?:lay|arrange)|index|compaction|likelihood|triangles",
     r"cop(?:y|ies)|concatenation|index|entries|masked|nll|triangles|transpose"),
    ("optimizers, lists", r"optimizers|lists", r"optimizers|foreach|multi_tensor"),
    ("elementwise, losses, random",
     r"elementwise|activation|attributes|broadcast|flat|gates|loss|made|numbering|pointwise|"
     r"quotients|draws",
     r"elementwise|formulas|activations|attributes|broadcast|gates|loss|factories|arange|pointwise|"
     r"rounded|random"),
    ("bindings, calls", r"bind|linked|call", r"$^"),
    ("tables and what all share", r"", r""),
)  # fmt: skip


def lines(revision: str, *folders: str) -> dict[str, int]:
    """Lines of each Python file below the folders."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout

    names = git("ls-tree", "-r", "--name-only", revision, *folders).splitlines()
    return {n: git("show", f"{revision}:{n}").count("\n") for n in names if n.endswith(".py")}


def by_family(found: dict[str, int], column: int) -> dict[str, int]:
    totals = {family[0]: 0 for family in FAMILIES}
    for name, count in found.items():
        path = name.removeprefix("torch_trn_emu/").removeprefix("lowering/")
        totals[next(f[0] for f in FAMILIES if re.search(f[column], path))] += count
    return totals


def main() -> None:
    revision = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    before = by_family(lines(BEFORE, "torch_trn_emu/lowering"), 1)
    now = by_family(lines(revision, "torch_trn_emu/ops", "torch_trn_emu/kernels"), 2)
    print("| family | `lowering` | `ops` and `kernels` |\n|---|---:|---:|")
    for name, count in before.items():
        print(f"| {name} | {count:,} | {now[name]:,} |")
    print(f"| all | {sum(before.values()):,} | {sum(now.values()):,} |")


if __name__ == "__main__":
    main()
