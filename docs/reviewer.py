#!/usr/bin/env python3
"""A reviewer for Postern: allows what fetches, denies what publishes or could be the agent's own program,
and leaves everything else to a person by giving no answer."""

import json
import sys

question = json.load(sys.stdin)
argv = [word if isinstance(word, str) else "" for word in question["argv"]]
words = [argv[0].rsplit("/", 1)[-1], *argv[1:]]


def answer(outcome, risk, rationale):
    json.dump({"outcome": outcome, "risk_level": risk, "rationale": rationale}, sys.stdout)
    sys.exit(0)


if question["wider"] and question["agent_writable"]:
    answer("deny", "high", "the sandbox can write this program")
if words[:2] in (["git", "fetch"], ["git", "ls-remote"]):
    answer("allow", "low", "it only fetches")
if words[:2] in (["git", "push"], ["npm", "publish"], ["cargo", "publish"]):
    answer("deny", "high", "people publish, agents do not")
# No answer: a person is asked.
sys.exit(3)
