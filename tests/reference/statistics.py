#!/usr/bin/env python3
"""Writes statistics.json beside this file: random inputs, and what SciPy and statsmodels say of them.

    python3 -m venv env && env/bin/pip install scipy==1.17.1 statsmodels==0.15.0 numpy==2.4.6
    env/bin/python tests/reference/statistics.py

Knows nothing of forge: the Rust tests in src/stats/reference.rs read the file and compare.
"""

import json
import pathlib
import warnings

import numpy as np
import scipy
import scipy.stats as st
import statsmodels
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

warnings.simplefilter("ignore")
rng = np.random.default_rng(20_261_122)
out = {"versions": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__, "numpy": np.__version__}}

out["t_quantiles"] = [[df, st.t.ppf(0.975, df)] for df in [1, 2, 3, 4, 5, 9, 19, 29, 99, 299, 300, 999, 9_999, 1_000_000]]

out["t_tails"] = [[t, df, 2 * st.t.sf(t, df)] for df in [1, 5, 30, 5_000, 100_000, 1_000_000] for t in [0.0, 0.5, 2.0, 6.0]]

cases = [(0, 1), (1, 1), (0, 7), (7, 7)]
cases += [(int(rng.integers(0, n + 1)), int(n)) for n in rng.integers(1, 3000, 60)]
out["wilson"] = [[k, n, *proportion_confint(k, n, method="wilson")] for k, n in cases]


def clustered(values, groups):
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    return {"se": fit.bse[0], "ci": list(fit.conf_int()[0])}


out["clustered"] = []
for case in range(60):
    rows, most = int(rng.integers(3, 40)), int(rng.integers(1, 7))
    data, values, groups = [], [], []
    per_cluster = int(rng.integers(1, 4))
    for row in range(rows):
        level = rng.uniform()
        draws = int(rng.integers(1, most + 1))
        drawn = (rng.uniform(size=draws) < level).astype(float) if case % 2 else np.clip(level + rng.normal(0, 0.1, draws), 0, 1).round(3)
        data.append({"cluster": row // per_cluster, "values": [float(v) for v in drawn]})
        values += list(drawn)
        groups += [row // per_cluster] * draws
    if len(set(groups)) < 2:
        continue
    out["clustered"].append({"rows": data, "mean": float(np.mean(values)), **clustered(np.array(values), np.array(groups))})

out["mcnemar"] = []
for case in range(80):
    a, b = (int(x) for x in rng.integers(0, 14 if case % 2 else 120, 2))
    table = [[5, a], [b, 3]]
    got = mcnemar(table, exact=True) if a + b < 25 else mcnemar(table, exact=False, correction=True)
    out["mcnemar"].append([a, b, float(got.statistic), float(got.pvalue)])

out["sign_flip"] = []
for case in range(30):
    n = int(rng.integers(2, 13)) if case < 20 else int(rng.integers(30, 100))
    a, b = rng.uniform(size=n).round(3), (rng.uniform(size=n) + rng.choice([0, 0.1, 0.3])).round(3)
    n_resamples = np.inf if n <= 12 else 99_999
    got = st.permutation_test((a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples",
                              vectorized=True, n_resamples=n_resamples, rng=np.random.default_rng(case))
    out["sign_flip"].append({"a": list(a), "b": list(b), "exact": n <= 12, "p": float(got.pvalue)})

out["bootstrap"] = []
for case in range(20):
    n = int(rng.integers(8, 120))
    a, b = rng.beta(2, 3, n).round(3), rng.beta(3, 2, n).round(3)
    # The expanded percentile interval of Hesterberg (2015): percentiles further out than 2.5 and 97.5.
    level = 1 - 2 * st.norm.cdf(-np.sqrt(n / (n - 1)) * st.t.ppf(0.975, n - 1))
    got = st.bootstrap((b - a,), np.mean, method="percentile", confidence_level=level, n_resamples=50_000,
                       rng=np.random.default_rng(case)).confidence_interval
    out["bootstrap"].append({"a": list(a), "b": list(b), "tail": (1 - level) / 2, "ci": [got.low, got.high]})

out["holm"] = []
for case in range(30):
    p = rng.uniform(size=int(rng.integers(1, 12))) ** 2
    out["holm"].append([list(p), list(multipletests(p, method="holm")[1])])

out["detectable"] = []
for case in range(20):
    n = int(rng.integers(10, 150))
    a, b = rng.uniform(size=n).round(3), rng.uniform(size=n).round(3)
    d = b - a
    # In standard deviations; ratio 0 is one sample, here that of the differences. The other tail is left out,
    # which at this power is below the ninth digit.
    effect = NormalIndPower(ddof=0).solve_power(nobs1=n, alpha=0.025, power=0.8, ratio=0, alternative="larger")
    out["detectable"].append({"a": list(a), "b": list(b), "detectable": float(effect * d.std(ddof=1))})


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def line(value):
    return json.dumps(plain(value), separators=(",", ":"))


# A case a line, so that a difference can be read.
parts = []
for name, value in out.items():
    inner = ",\n".join(line(case) for case in value) if isinstance(value, list) else None
    parts.append(f'"{name}":' + (f"[\n{inner}\n]" if inner else line(value)))
pathlib.Path(__file__).with_name("statistics.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")
