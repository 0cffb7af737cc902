"""What another tool reads in a message, and this one does not, is refused with its name."""

from __future__ import annotations

import pytest

from graftlm.data import parse_row
from graftlm.data.messages import RowError

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CITY = {"city": "Huế"}


def calling(*calls, **more):
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **more}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (calling({"function": {"name": "f", "parameters": CITY}}), "a call with parameters"),
        (calling({"type": "tool_use", "id": "1", "name": "f", "input": CITY}), "with input"),
        (calling({"name": "f", "args": CITY}), "a call with args"),
        (
            calling({"name": "f"}, function_call={"name": "g", "arguments": "{}"}),
            "tool_calls and function_call",
        ),
        (ANSWER | {"value": "another"}, "content and value, and they differ"),
        (ANSWER | {"from": "human"}, "role and from, and they differ"),
        ({"role": "assistant", "content": [{"text": "a", "image": "a.png"}]}, "part with image"),
        *((ANSWER | {name: no}, f"{name} is .* train: false") for name, no in
          (("loss", False), ("training", False), ("loss_weight", 0.0), ("loss_mask", 0),
           ("mask", True), ("train_detail", [{"begin_offset": 0, "train": False}]))),
    ],
)  # fmt: skip
def test_a_field_that_would_be_lost_is_refused(answer, said):
    with pytest.raises(RowError, match=rf"messages\[1\].*{said}"):
        parse_row({"messages": [USER, answer]})


@pytest.mark.parametrize(
    "more",
    [{"loss": True}, {"loss_weight": 1.0}, {"mask": False}, {"from": "gpt"}, {"value": "yo"},
     {"value": 0.7}, {"name": "Lan"}, {"from": None, "value": None}],
)  # fmt: skip
def test_a_field_that_changes_nothing_is_no_reason_to_refuse(more):
    row = parse_row({"messages": [USER, ANSWER | more]})
    assert row.messages[1]["content"] == "yo"
    assert row.learn == (False, True)


def test_the_remarks_of_a_call_are_read_past():
    call = {"type": "function_call", "call_id": "c", "status": "completed", "id": "7"}
    row = parse_row({"messages": [USER, calling(call | {"name": "f", "arguments": CITY})]})
    [read] = row.messages[1]["tool_calls"]
    assert read["function"] == {"name": "f", "arguments": CITY}
    assert read["id"] == "7"
