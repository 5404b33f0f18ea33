"""python -m tests.fuzz: a longer campaign, or one case again. See tests/fuzz/campaign.py."""

import argparse
import shutil
import sys
from pathlib import Path

from tests.fuzz.campaign import ROOT, campaign
from tests.fuzz.corpus import make_corpus
from tests.fuzz.worker import limit_memory, read_case

WORK = ROOT / "build" / "fuzz"

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read mutated files; faults are listed.")
parser.add_argument("case", nargs="?", type=Path, help="folder of a case that went wrong: read it once more")
parser.add_argument("--corpus", type=Path, default=WORK / "corpus", help="the samples; made if they are not there")
parser.add_argument("--seconds", type=float, default=600)
parser.add_argument("--seed", type=int, default=1000, help="of the first case")
arguments = parser.parse_args()
if not arguments.case:
    shutil.rmtree(arguments.corpus, ignore_errors=True)  # the library that made it may have changed since
corpus = make_corpus(arguments.corpus)
if arguments.case:
    kind = (arguments.case / "changes.txt").read_text().splitlines()[0]
    limit_memory()
    fault = read_case(corpus, next(p for p in arguments.case.iterdir() if p.is_dir()), kind)
    sys.exit(fault)
n_cases, faults = campaign(corpus, corpus.parent / "kept", arguments.seconds, arguments.seed)
sys.stdout.write("\n".join([*map(str, faults), f"{n_cases} cases, {len(faults)} kinds of fault\n"]))
sys.exit(bool(faults))
