"""Makes results worse: worsen.py RESULTS.json WORSE.json MISSING.json. In the second every figure is twice
as bad, in the third one is missing."""

import copy
import json
import sys

source, worse, missing = sys.argv[1:]
with open(source) as file:
    results = json.load(file)
without = copy.deepcopy(results)
next(run for run in without["runs"] if run["measurements"])["measurements"].pop()
for run in results["runs"]:
    for figure in run["measurements"]:
        factor = {"higher": 0.5, "lower": 2.0, "neither": 1.0}[figure["better"]]
        figure["samples"] = [value * factor for value in figure["samples"]]
        for name in ("median", "lowest", "highest"):
            figure[name] *= factor
for target, content in ((worse, results), (missing, without)):
    with open(target, "w") as file:
        json.dump(content, file)
