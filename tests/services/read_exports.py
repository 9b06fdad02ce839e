"""Reads what forge exports with the readers of those it is for, and prints what they found as JSON.

    python3 tests/services/read_exports.py tables FOLDER | inspect FOLDER | lm-eval FOLDER
"""
import glob
import json
import sys


def tables(folder):
    import pyarrow.feather
    import pyarrow.parquet

    parquet = pyarrow.parquet.read_table(f"{folder}/samples.parquet")
    arrow = pyarrow.feather.read_table(f"{folder}/samples.arrow")
    assert parquet.equals(arrow), "the two files differ"
    file = pyarrow.parquet.ParquetFile(f"{folder}/samples.parquet")
    return {
        "rows": parquet.to_pylist(),
        "types": {field.name: str(field.type) for field in parquet.schema},
        "groups": file.num_row_groups,
    }


def inspect(folder):
    from inspect_ai.log import list_eval_logs, read_eval_log

    logs = []
    for info in sorted(list_eval_logs(folder), key=lambda info: info.task):
        head = read_eval_log(info, header_only=True)
        log = read_eval_log(info)
        assert head.results == log.results and head.samples is None
        logs.append(
            {
                "status": log.status,
                "task": log.eval.task,
                "model": log.eval.model,
                "solver": log.eval.solver,
                "config": log.eval.model_generate_config.model_dump(exclude_none=True),
                "results": log.results.model_dump(exclude_none=True),
                "usage": {k: v.model_dump(exclude_none=True) for k, v in log.stats.model_usage.items()},
                "error": log.error.message if log.error else None,
                "samples": [
                    {
                        "id": sample.id,
                        "epoch": sample.epoch,
                        "input": sample.input,
                        "target": sample.target,
                        "roles": [message.role for message in sample.messages],
                        "completion": sample.output.completion,
                        "stop": sample.output.stop_reason if sample.output.choices else None,
                        "scores": {k: v.value for k, v in (sample.scores or {}).items()},
                        "error": sample.error.message if sample.error else None,
                        "outcome": sample.metadata["outcome"],
                    }
                    for sample in log.samples
                ],
            }
        )
    return logs


def lm_eval(folder):
    from lm_eval import utils

    found = sorted(glob.glob(f"{folder}/**/*", recursive=True))
    results = utils.get_results_filenames(found)
    out = []
    for path in results:
        result = json.load(open(path, encoding="utf-8"))
        tasks = {}
        hashes = {}
        for name in utils.get_sample_results_filenames(found):
            if name.rsplit("/", 1)[0] != path.rsplit("/", 1)[0]:
                continue
            task = utils.get_file_task_name(name.rsplit("/", 1)[1])
            lines = [json.loads(line) for line in open(name, encoding="utf-8")]
            assert utils.get_file_datetime(name) == utils.get_file_datetime(path).replace(".json", "")
            for line in lines:
                doc = json.dumps(line["doc"], indent=2, ensure_ascii=False)
                assert line["doc_hash"] == utils.hash_string(doc), doc
                assert line["prompt_hash"] == utils.hash_string(line["arguments"]["gen_args_0"]["arg_0"])
                assert line["target_hash"] == utils.hash_string(line["target"])
                json.loads(line["arguments"]["gen_args_0"]["arg_0"])
            sums = [line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines]
            hashes[task] = utils.hash_string("".join(sums))
            tasks[task] = lines
        assert hashes == result["task_hashes"], (hashes, result["task_hashes"])
        assert utils.sanitize_model_name(result["model_name"]) == result["model_name_sanitized"]
        out.append({"table": utils.make_table(result), "results": result, "samples": tasks})
    return out


what, folder = sys.argv[1:]
print(json.dumps({"tables": tables, "inspect": inspect, "lm-eval": lm_eval}[what](folder)))
