from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from jsonschema import Draft202012Validator

sys.path.insert(0, str(Path(__file__).parent))
from kuberay import TEXT, record
from manifests import ROOT, Document, base, named, optional, pods

LABELS = {"type": "object", "additionalProperties": TEXT}
RULE = record(
    {"alert": TEXT, "expr": TEXT, "labels": record({"severity": {"enum": ["warning", "critical"]}})},
    {"for": {"type": "string", "pattern": r"^\d+[smhd]$"}, "annotations": record({"summary": TEXT}, {"action": TEXT})},
)
GROUPS = {"type": "array", "items": record({"name": TEXT, "rules": {"type": "array", "items": RULE, "minItems": 1}})}
SPECS = {
    "PrometheusRule": record({"groups": GROUPS}),
    "PodMonitor": record(
        {
            "selector": record({"matchExpressions": {"type": "array"}}),
            "podMetricsEndpoints": {"type": "array", "items": record({"port": TEXT})},
        }
    ),
}
KUBE_STATE_METRICS = {"kube_job_status_failed", "kube_cronjob_created", "kube_cronjob_status_last_successful_time"}
PARTS = ("_total", "_bucket", "_sum", "_count")


def rules() -> list[Document]:
    found = named(optional(), "PrometheusRule", "ra-dpo")["spec"]["groups"]
    return [rule for group in found for rule in group["rules"]]


def metrics(node: Any) -> Iterator[str]:
    """Names of the metrics in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        assert node.name
        yield node.name
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from metrics(node.lhs)
        yield from metrics(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from metrics(argument)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from metrics(node.vector_selector)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr | promql_parser.SubqueryExpr):
        yield from metrics(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral), node


def defined() -> set[str]:
    """Names under which this project's metrics are scraped, without the parts that Prometheus' formats add."""
    serving = (ROOT / "pipeline" / "serving" / "metrics.py").read_text(encoding="utf-8")
    watch = (ROOT / "pipeline" / "watch" / "metrics.py").read_text(encoding="utf-8")
    names = {f"ray_{name}" for name in re.findall(r'"(ra_dpo_serving_\w+)"', serving)}
    (prefix,) = re.findall(r'_PREFIX = "(\w+)"', watch)
    for kind, name in re.findall(r'yield (counter|gauge)\(\s*"(\w+)"', watch):
        names.add(f"{prefix}{name}" + ("_total" if kind == "counter" else ""))
    return names


def rays_own() -> str:
    """Where the installed Ray names the metrics of its nodes."""
    import importlib.util

    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_there_are(rule: Document) -> None:
    names = set(metrics(promql_parser.parse(rule["expr"])))
    assert names
    for name in names:
        if name.startswith("kube_"):
            assert name in KUBE_STATE_METRICS
        elif name.startswith("ray_node_"):
            assert f'"{name.removeprefix("ray_")}"' in rays_own()
        else:
            assert name in defined() or re.sub("_(bucket|sum|count)$", "", name) in defined(), name


def test_a_metric_that_is_not_there_would_be_found() -> None:
    (name,) = metrics(promql_parser.parse("increase(ra_dpo_watch_alarm_total[5m]) > 0"))
    assert name not in defined()
    assert "ra_dpo_watch_alarms_total" in defined()
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("increase(ra_dpo_watch_alarms_total[5m] > 0")


def test_every_label_in_a_text_is_one_that_the_expression_keeps() -> None:
    for rule in rules():
        wanted = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        if kept:
            assert wanted <= {name.strip() for name in kept[0].split(",")}, rule["alert"]
        if re.match(r"(sum|absent)\((?!.*by)", rule["expr"]):
            assert not wanted, rule["alert"]


def test_the_documents_have_no_other_fields() -> None:
    for kind, schema in SPECS.items():
        (document,) = [found for found in optional() if found["kind"] == kind]
        assert document["apiVersion"] == "monitoring.coreos.com/v1"
        assert [error.message for error in Draft202012Validator(schema).iter_errors(document["spec"])] == []
    wrong = {
        "groups": [
            {"name": "a", "rules": [{"alert": "A", "expr": "up", "labels": {"severity": "warning"}, "fro": "5m"}]}
        ]
    }
    assert list(Draft202012Validator(SPECS["PrometheusRule"]).iter_errors(wrong))


def test_what_is_scraped_has_the_port_and_is_let_in() -> None:
    monitor = named(optional(), "PodMonitor", "ra-dpo")["spec"]
    (rule,) = monitor["selector"]["matchExpressions"]
    assert monitor["podMetricsEndpoints"] == [{"port": "metrics"}]
    policy = named(optional(), "NetworkPolicy", "metrics")["spec"]
    assert policy["podSelector"]["matchExpressions"] == [rule]
    opened = {port["port"] for port in policy["ingress"][0]["ports"]}
    scraped = [pod for pod in pods(base()) if pod.labels[rule["key"]] in rule["values"]]
    ports = {p["containerPort"] for pod in scraped for p in pod.container["ports"] if p["name"] == "metrics"}
    assert ports == opened
    assert all("metrics" in {port["name"] for port in pod.container["ports"]} for pod in scraped)
