"""Fail if tests were skipped whose data are there, or whose package `[dev]` installs; with --none, if any was."""

import os
import re
import sys
from xml.etree import ElementTree

PEERS = {"learn2learn", "easyfsl", "LibMTL", "torchvision", "timm"}  # optional references of tests

skipped = [
    f"{case.get('classname')}.{case.get('name')}: {skip.get('message')}"
    for report in sys.argv[1:]
    if report != "--none"
    for case in ElementTree.parse(report).iter("testcase")
    for skip in case.iter("skipped")
]
for_data = [line for line in skipped if "LIGHTNING_META_DATA" in line]
print(f"{len(skipped)} skipped, {len(for_data)} of them because data are missing")
for line in skipped:
    print(" ", line)
if skipped and "--none" in sys.argv:
    sys.exit("tests were skipped here that must run")
imports = [(line, re.search(r"could not import '(\w+)", line)) for line in skipped]
if missing := [line for line, found in imports if found and found[1] not in PEERS]:
    sys.exit(f"packages are missing that [dev] should install: {missing[0]}")
if for_data and os.environ.get("CI"):
    sys.exit("tests that need data were skipped: point LIGHTNING_META_DATA at it")
