"""ratio_table.py FOLDER JSON: the rounds in FOLDER/{troupe,ray,ray_cpp}-N.jsonl as a table.

Prints Markdown and writes JSON. Values are medians of the rounds. A ratio is how many times better
Troupe is: ours/Ray's of rates, Ray's/ours of times; the median of the rounds' own ratios.
"""
import json
import pathlib
import statistics
import sys

TIMES = ("s", "us", "percent")  # Units of which less is better.
PEERS = ("ray", "ray_cpp")


def read(folder):
    """{row name: {(who, round): row}}, in the order in which the rows ran."""
    found = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: (not p.name.startswith("troupe"), p)):
        who, _, number = path.stem.rpartition("-")
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["name"], {})[who, number] = row
    return found


def median(rows, who, key):
    values = [row[key] for (owner, _), row in rows.items() if owner == who and key in row]
    return statistics.median(values) if values else None


def ratio(rows, peer):
    ratios = []
    for (who, number), ours in rows.items():
        theirs = rows.get((peer, number))
        if who != "troupe" or not theirs or not ours["value"] or not theirs["value"]:
            continue
        quotient = ours["value"] / theirs["value"]
        ratios.append(1 / quotient if ours["unit"] in TIMES else quotient)
    return statistics.median(ratios) if ratios else None


def summary(name, rows):
    out = {"name": name, "unit": next(iter(rows.values()))["unit"]}
    for who in ("troupe", *PEERS):
        out[who] = median(rows, who, "value")
        out[who + "_cpu_s_per_million"] = median(rows, who, "cpu_s_per_million")
    for peer in PEERS:
        out["ratio_to_" + peer] = ratio(rows, peer)
    return out


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main():
    table = [summary(name, rows) for name, rows in read(pathlib.Path(sys.argv[1])).items()]
    pathlib.Path(sys.argv[2]).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    keys = ("troupe", "ray", "ratio_to_ray", "ray_cpp", "ratio_to_ray_cpp",
            "troupe_cpu_s_per_million", "ray_cpu_s_per_million")
    print("| row | unit | Troupe | Ray | ratio | Ray C++ | ratio | cpu s/million: Troupe | Ray |")
    print("| --- | --- " + "| ---: " * len(keys) + "|")
    for row in table:
        cells = [row["name"], row["unit"], *(number(row[key]) for key in keys)]
        print("| " + " | ".join(cells) + " |")


main()
