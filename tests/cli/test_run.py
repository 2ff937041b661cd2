"""Answers to lines of standard input."""

import json
import signal
import subprocess
from pathlib import Path

from onnxport.runtime.bundle.reader import Bundle
from support import structured_bundles, tiny_encoder
from support.commands import COMMAND, invoke, started


def test_lines_are_answered_by_lines(bundle: Bundle) -> None:
    result = subprocess.run([*COMMAND, "run", str(bundle.path)], input=b"a b\r\n\nc", capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode().split("\n")
    assert len(lines) == 4
    assert lines[1] == "" == lines[3]
    assert lines[0] + "\n" == invoke("run", bundle.path, "a b").stdout


def test_a_line_is_answered_before_the_next_is_there(bundle: Bundle) -> None:
    with started([*COMMAND, "run", str(bundle.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for text in (b"a b\n", b"c d\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.wait(60) == 0


def test_invalid_utf8_is_refused_with_its_line(bundle: Bundle) -> None:
    result = subprocess.run([*COMMAND, "run", str(bundle.path)], input=b"a\n\xff\n", capture_output=True, timeout=60)
    assert result.returncode == 4
    assert b"line 2" in result.stderr
    assert b"Traceback" not in result.stderr


def test_interrupt_during_run(bundle: Bundle) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*COMMAND, "run", str(bundle.path)], **pipes) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"a b\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == b"onnxport: interrupted"


def answered(bundle: Bundle, stdin: bytes, *options: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*COMMAND, "run", str(bundle.path), *options], input=stdin, capture_output=True, timeout=60)


def test_good_lines_before_a_bad_one_are_answered(bundle: Bundle) -> None:
    result = answered(bundle, b"a b\nc d\n" + b"a " * 40 + b"\nd e\n")
    assert result.returncode == 4
    assert len(result.stdout.splitlines()) == 2
    assert b"line 3 of standard input" in result.stderr
    assert len(answered(bundle, b"a b\n\xff\n").stdout.splitlines()) == 1


def test_a_byte_order_mark_and_blanks_change_nothing(bundle: Bundle) -> None:
    assert answered(bundle, b"\xef\xbb\xbfa b\n").stdout == answered(bundle, b"a b\n").stdout
    assert answered(bundle, b" \t\na b\n").stdout == b"\n" + answered(bundle, b"a b\n").stdout


def test_streamed_objects_count_all_lines_and_end_with_the_result(bundle: Bundle) -> None:
    result = answered(bundle, b"a b\n" * 70, "--stream", "--json", "--max-new-tokens", "2")
    assert result.returncode == 0, result.stderr
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    ends = [item for item in objects if "result" in item]
    assert [item["index"] for item in ends] == list(range(70))
    for end in ends:
        pieces = [item["text"] for item in objects if item["index"] == end["index"] and "text" in item]
        assert "".join(pieces) == end["result"]["text"]
        assert end["result"]["finish_reason"]


def test_an_endless_line_is_refused(bundle: Bundle) -> None:
    result = answered(bundle, b"a" * (18 << 20))
    assert result.returncode == 4
    assert b"longer than 16 MiB" in result.stderr


def test_closed_standard_input_is_wrong_usage(bundle: Bundle) -> None:
    result = subprocess.run(f"{' '.join(COMMAND)} run {bundle.path} <&-", shell=True, capture_output=True, timeout=60)
    assert result.returncode == 2, result.stderr
    assert b"standard input is closed" in result.stderr


def test_answers_follow_a_schema_in_a_file(tmp_path: Path) -> None:
    bundle, schema = structured_bundles.write(tmp_path / "bundle", "causal"), tmp_path / "schema.json"
    schema.write_text(json.dumps(structured_bundles.SCHEMA))
    options = ["--json-schema", schema, "--max-new-tokens", "200", "--top-logprobs", "2"]
    result = invoke("run", bundle, "--json", *options, "one", "two")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)["results"]
    assert len(answers) == 2
    for answer in answers:
        assert structured_bundles.fits(answer["text"]) and answer["finish_reason"] == "stop"
        assert len(answer["top_logprobs"]) == len(answer["tokens"]) and len(answer["top_logprobs"][0]) == 2
    for content, code, part in (("{", 4, "not a JSON schema"), ('{"type": "strin"}', 2, "Invalid type")):
        schema.write_text(content)
        refused = invoke("run", bundle, *options, "one")
        assert refused.exit_code == code and part in refused.stderr and len(refused.stderr.splitlines()) == 1
    schema.unlink()
    absent = invoke("run", bundle, *options, "one")
    assert absent.exit_code == 4 and "schema.json cannot be read (No such file or directory); give --json-schema a file" in absent.stderr


def test_a_schema_is_for_what_generates(tmp_path: Path) -> None:
    bundle = tiny_encoder.write(tmp_path / "bundle", "embedding", tiny_encoder.table(4))
    result = invoke("run", bundle, "--json-schema", tmp_path / "schema.json", "a")
    assert result.exit_code == 2 and "--json-schema: the task of this bundle is embedding, which generates no text" in result.stderr
