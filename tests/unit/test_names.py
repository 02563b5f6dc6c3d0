import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import (
    JOB_SUBJECTS,
    cancel_subject,
    claim_subject,
    event_subject,
    job_subject,
    job_subjects_of,
    node_key,
    node_name,
    node_token,
    worker_consumer,
)

ANY_NAME = st.text(st.characters(exclude_categories=[]))
"""Lone surrogates too: what Python makes of a file name that is no UTF-8."""


@given(ANY_NAME)
def test_every_name_comes_back_from_its_token(name: str) -> None:
    assert node_name(node_token(name)) == name


@given(ANY_NAME)
def test_a_token_is_one_token_of_a_subject_and_a_key(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", node_token(name))
    assert node_key(name) == node_token(name)


@given(ANY_NAME, ANY_NAME)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (node_token(one) == node_token(other)) == (one == other)


@given(st.text(st.sampled_from("ab_-.0f2e"), max_size=8))
def test_only_what_node_token_makes_is_taken_back(token: str) -> None:
    try:
        name = node_name(token)
    except ValueError:
        return
    assert node_token(name) == token


@pytest.mark.parametrize("token", ["", "_4", "_zz", "_41", "a.b", "_c3", "a\n", "_2E", "é"])
def test_a_token_nobody_made_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"is not the token|can't decode"):
        node_name(token)


def test_ordinary_names_stay_readable() -> None:
    assert node_token("gpu-7") == "gpu-7"
    assert job_subject("ip-10-0-0-1.ec2.internal", "checkpoint") == (
        "kybernate.job.ip-10-0-0-1_2eec2_2einternal.checkpoint"
    )


def test_subjects_of_one_node_have_its_token_third() -> None:
    subjects = [
        job_subject("n.x", "delete"),
        event_subject("n.x", "accepted"),
        cancel_subject("n.x"),
        claim_subject("n.x"),
        job_subjects_of("n.x"),
    ]
    assert {subject.split(".")[2] for subject in subjects} == {"n_2ex"}
    assert worker_consumer("n.x") == "worker-n_2ex"
    assert job_subject("n", "v").startswith(JOB_SUBJECTS.removesuffix(">"))
