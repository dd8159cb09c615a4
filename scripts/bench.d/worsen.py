"""Makes every figure of results twice as bad: worsen.py RESULTS.json WORSE.json."""

import json
import sys

source, target = sys.argv[1:]
with open(source) as file:
    results = json.load(file)
for run in results["runs"]:
    for figure in run["measurements"]:
        factor = {"higher": 0.5, "lower": 2.0, "neither": 1.0}[figure["better"]]
        figure["samples"] = [value * factor for value in figure["samples"]]
        for name in ("median", "lowest", "highest"):
            figure[name] *= factor
with open(target, "w") as file:
    json.dump(results, file)
