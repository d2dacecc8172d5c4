"""A small federation's ledger and the other parts of a page, as plain values."""

import numpy as np

from medseg_kit.report.overlays import overlap_image

SITES = ("site-kidneys", "site-liver", "site-pancreas", "site-spleen")


def ledger(num_rounds=12):
    generator = np.random.default_rng(3)
    records = [
        {
            "type": "run",
            "round": 0,
            "bundle": "abdomen_ct_segviz",
            "bundle_version": "0.1.0",
            "method": None,
        }
        | {"seed": 0, "num_rounds": num_rounds, "sites": list(SITES), "strategy": "SelectiveSync"}
    ]
    records.append(
        {"type": "event", "round": 1, "site": SITES[3], "event": "not joined: no answer"}
    )
    for number in range(1, num_rounds + 1):
        values, failures = {}, {}
        for index, site in enumerate(SITES):
            if site == SITES[3] and number < 3:
                continue
            record = site_record(number, site, samples=20 + index)
            if (site, number) == (SITES[2], 5):
                record |= {"status": "failed", "failure": "key encoder.weight has NaN"}
                failures[site] = record["failure"]
            value = (0.92 - 0.07 * index) * (1 - np.exp(-number / 4)) + generator.normal(0, 0.01)
            values[site] = float(value)
            record["metrics"] = {"val_mean_dice": values[site]}
            if number == num_rounds:
                record["local_metrics"] = {"val_mean_dice": values[site] - 0.02 * (index - 1)}
                record["federated_minus_local"] = 0.02 * (index - 1)
            records.append(record)
        records.append(round_record(number, values, failures))
    return records


def site_record(number, site, *, samples):
    return {
        "type": "site",
        "round": number,
        "site": site,
        "status": "ok",
        "failure": None,
        "expected_keys": 96,
        "received_keys": 96,
        "bytes_sent": 4_200_000,
        "bytes_received": 4_200_000,
        "seconds": 11.5,
        "num_samples": samples,
        "num_steps": 10,
        "update_norm": 1.5 / number,
        "digest": "0",
        "metrics": None,
        "metrics_suppressed": None,
        "local_metrics": None,
        "federated_minus_local": None,
    }


def round_record(number, values, failures):
    worst = min(values, key=values.get)
    mean = float(np.mean(list(values.values())))
    return {
        "type": "round",
        "round": number,
        "sites_ok": sorted(set(values) - set(failures)),
        "failures": failures,
        "key_metric": "val_mean_dice",
        "mean_metric": mean,
        "num_reporting": len(values),
        "worst_site": worst,
        "worst_site_gap": mean - values[worst],
        "seconds": 40.0,
    }


def dice_table():
    organs = ("liver", "spleen", "pancreas", "kidneys")
    means = {
        "SegViz federation": (0.93, 0.84, 0.41, 0.78),
        "Conventional averaging": (0.91, 0.46, 0.39, 0.68),
        "Pooled training": (0.65, 0.02, 0.55, 0.68),
        "Single-site models": (0.88, 0.79, 0.46, 0.64),
    }
    return [
        {
            "model": model,
            "label": organ,
            "dice_mean": mean,
            "dice_sd": 0.05 + 0.1 * (1 - mean),
            "dice_low": mean - 0.03,
            "dice_high": mean + 0.03,
            "n": 12,
            "n_missed": 3 if mean < 0.1 else 0,
            "highlight": model.startswith("SegViz"),
        }
        for model, values in means.items()
        for organ, mean in zip(organs, values, strict=True)
    ]


def overlays(count=4):
    grid = np.mgrid[-1:1:64j, -1:1:56j, -1:1:12j]
    body = (grid[0] ** 2 / 0.8 + grid[1] ** 2 / 0.6) < 1
    noise = np.random.default_rng(0).normal(0, 25, body.shape)
    pictures = []
    for index in range(count):
        reference = ((grid[0] - 0.3) ** 2 + (grid[1] + 0.1) ** 2 + grid[2] ** 2) < 0.12
        pred = np.roll(reference, 2 + index, axis=0)
        image = np.where(body, 40 + 90 * reference, -900) + noise
        png = overlap_image(
            image, reference, pred, affine=np.diag([3, 3, 6, 1.0]), window=(-160, 240)
        )
        pictures.append(
            {"title": f"patient {index + 1}, liver", "caption": "Dice 0.86", "png": png}
        )
    return pictures


NOTES = ("All patients of this page are synthetic phantoms: they show that the machinery works.",)
