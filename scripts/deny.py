#!/usr/bin/env python3
"""Whether what is built in obeys deny.toml: licences, duplicate versions, wildcards, sources. Reads cargo-deny's own file, for
where cargo-deny itself is not at hand. One line per breach; exit status 1 if there is one."""

import collections
import json
import re
import subprocess
import sys
import tomllib


def packages(targets):
    """The packages that any of the targets needs, development and building included."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    filters = [word for target in targets for word in ("--filter-platform", target)]
    return json.loads(subprocess.run(command + filters, check=True, stdout=subprocess.PIPE).stdout)["packages"]


def allowed(expression, licences):
    """Whether the licences that are allowed satisfy an SPDX expression; a slash is the old way to say OR."""
    tokens = re.findall(r"[()]|[^\s()/]+|/", expression)

    def either():
        value = both()
        while tokens and tokens[0] in ("OR", "/"):
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            if tokens.pop(0) != ")":
                raise ValueError(expression)
            return value
        if tokens and tokens[0] == "WITH":
            token = f"{token} {tokens.pop(0)} {tokens.pop(0)}"
        return token in licences

    value = either()
    if tokens:
        raise ValueError(expression)
    return value


def breaches(rules, found):
    licences = rules["licenses"]["allow"]
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    skipped = {skip["crate"] for skip in rules["bans"]["skip"]}
    versions = collections.defaultdict(set)
    for package in found:
        name = f"{package['name']}@{package['version']}"
        if not allowed(package["license"] or "none", licences):
            yield f"{name}: licence {package['license']} is not allowed"
        if package["source"] is not None and package["source"] not in registries:
            yield f"{name}: comes from {package['source']}"
        if package["source"] is None:
            for need in package["dependencies"]:
                if need["req"] == "*" and need.get("path") is None:
                    yield f"{name}: takes any version of {need['name']}"
        versions[package["name"]].add(name)
        if name in skipped:
            skipped.discard(name)
            versions[package["name"]].discard(name)
    for name, several in sorted(versions.items()):
        if len(several) > 1:
            yield f"{name} is there more than once: {', '.join(sorted(several))}"
    for name in sorted(skipped):
        yield f"{name} is skipped and not there"


def main():
    with open("deny.toml", "rb") as file:
        rules = tomllib.load(file)
    found = packages(rules["graph"]["targets"])
    complaints = list(breaches(rules, found))
    for complaint in complaints:
        print(complaint)
    print(f"{len(found)} packages, {len(complaints)} breaches")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
