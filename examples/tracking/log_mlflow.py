"""Logs a report of forge to MLflow: a run for each workflow, with its settings, metrics and samples."""
import json
import os
import pathlib

if not os.environ.get("MLFLOW_TRACKING_URI"):
    raise SystemExit("MLFLOW_TRACKING_URI is not set: nothing is logged")

import mlflow  # noqa: E402

report = json.load(open("report.json", encoding="utf-8"))
mlflow.set_experiment(report["run"]["pipeline"])
lines = []
for cell in report["cells"]:
    with mlflow.start_run(run_name=cell["name"]) as run:
        mlflow.set_tags({"forge.run_id": report["run"]["run_id"], "forge.key": cell["key"]})
        # MLflow takes 6,000 characters of a parameter.
        mlflow.log_params({name: str(value)[:6000] for name, value in cell["config"].items()})
        metrics = cell["summary"]["metrics"]
        # What was not measured is no number.
        mlflow.log_metrics({name: value for name, value in metrics.items() if value is not None})
        mlflow.log_artifact("samples.parquet")
        lines.append(f"{cell['name']} {run.info.run_id}\n")
out = pathlib.Path("out/tracking/mlflow.txt")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("".join(lines))
