"""The comparison with declared types finds what differs: if these tests pass, the clients' types do hold elsewhere."""

from typing import Any

import pytest

from tests.clients.declared import COMMENT, Declarations

TEXT = """
/** A run. { not: code } */
export type Run = {
  readonly id: string; // its id
  status: 'failed' | "finished" | 3;
  duration?: number;
  stopTime?: string | null;
  blocks?: { type: "base" | "other"; rxBytes: number; }[] | null;
  tags: Array<string>;
  owner: Owner;
  extra?: Record<string, unknown>;
};
type Owner = {
    name: string;
    active: boolean;
};
declare function broken<T extends keyof Run = never>(run: T): Promise<Run>;
"""
RUN: dict[str, Any] = {"id": "1", "status": "failed", "tags": [], "owner": {"name": "-", "active": True}}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, set()),
        ({"status": 3, "duration": 1.5, "stopTime": None, "more": "than declared", "extra": {"a": [1]}}, set()),
        ({"blocks": [{"type": "base", "rxBytes": 1}], "tags": ["a"]}, set()),
        ({"blocks": None}, set()),
        ({"id": 1}, {"Run.id: 1 is no string"}),
        ({"id": None}, {"Run.id: None is no string"}),
        ({"status": "running"}, {"Run.status: 'running' is none of the choices"}),
        ({"duration": "5"}, {"Run.duration: '5' is no number"}),
        ({"duration": True}, {"Run.duration: True is no number"}),
        ({"stopTime": 7}, {"Run.stopTime: 7 is none of the choices"}),
        ({"blocks": [{"type": "new", "rxBytes": 1}]}, {"Run.blocks[].type: 'new' is none of the choices"}),
        ({"blocks": [{"type": "base"}]}, {"Run.blocks[].rxBytes: missing"}),
        ({"tags": "a"}, {"Run.tags: 'a' is no array"}),
        ({"tags": ["a", 1]}, {"Run.tags[]: 1 is no string"}),
        ({"owner": {"active": 0}}, {"Run.owner.name: missing", "Run.owner.active: 0 is no boolean"}),
        ({"owner": []}, {"Run.owner: [] is no object"}),
        ({"extra": 1}, {"Run.extra: 1 is no object"}),
    ],
)
def test_every_difference_is_found(changes: dict[str, Any], found: set[str]) -> None:
    assert Declarations(COMMENT.sub(" ", TEXT)).differences(RUN | changes, "Run") == found


def test_what_is_not_there_is_missing_and_what_is_not_declared_is_an_error() -> None:
    declared = Declarations(COMMENT.sub(" ", TEXT))
    assert declared.differences({}, "Owner") == {"Owner.name: missing", "Owner.active: missing"}
    assert declared.literals("Run", "status") == {"failed", "finished", 3}
    with pytest.raises(ValueError, match="declares no type Nothing"):
        declared.differences({}, "Nothing")
