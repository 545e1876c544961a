#!/usr/bin/env python3
"""A reviewer for Postern: allows what fetches, denies what publishes or could be the agent's own program,
and leaves everything else to a person by giving no answer."""

import json
import sys

question = json.load(sys.stdin)
# The program by its own path: argv[0] is whatever the asker wrote there.
program = question["program"] if isinstance(question["program"], str) else ""
words = [word if isinstance(word, str) else "" for word in question["argv"]]
called = words[0].rsplit("/", 1)[-1]
command = [program.rsplit("/", 1)[-1], *words[1:]]


def answer(outcome, risk, rationale):
    json.dump({"outcome": outcome, "risk_level": risk, "rationale": rationale}, sys.stdout)
    sys.exit(0)


if question["wider"] and question["agent_writable"]:
    answer("deny", "high", "the sandbox can write this program")
if called != command[0]:
    answer("deny", "high", "it is called by another name than its own")
# These words alone: an option of git's, or an address, can name a program.
if command in (["git", "fetch"], ["git", "fetch", "origin"], ["git", "ls-remote"]):
    answer("allow", "low", "it only fetches")
if command[:2] in (["git", "push"], ["npm", "publish"], ["cargo", "publish"]):
    answer("deny", "high", "people publish, agents do not")
# No answer: a person is asked.
sys.exit(3)
