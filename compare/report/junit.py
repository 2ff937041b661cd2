"""Gates as JUnit XML, which build servers show as tests, one case a gate."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(content: Mapping[str, Any]) -> str:
    """JUnit XML of `Report.as_dict()`, or of a report.json that was read; a gate that failed has its message as the failure."""
    gates = content["gates"]
    failed = sum(not gate["passed"] for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(failed), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "onnxport compare", **counts})
    name = f"onnxport.{_plain(content['bundle'])}"
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "timestamp": _plain(content["created"])})
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": _plain(gate["expr"])})
        if not gate["passed"]:
            failure = ElementTree.SubElement(case, "failure", {"type": "gate", "message": _plain(gate["message"])})
            failure.text = _plain(f"{gate['expr']}: {gate['message']}")
        elif gate["value"] is not None:
            ElementTree.SubElement(case, "system-out").text = f"{gate['value']:.6g}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _plain(text: str) -> str:
    return _NOT_XML.sub("?", text)
