"""A policy.Policy written down as a policy file."""

import os

from hako import sandbox, toml
from hako.failure import Failure

PLAIN = ("hostname", "uid", "gid", "user", "group")
ACCESS = ("ro", "rw", "rx", "rwx")
RIGHTS = ("bind_tcp", "connect_tcp")


def to_toml(policy):
    """A finished POLICY as a policy file that says the same by itself; what is the caller's, as it is now."""
    lines = [f"{toml.key(name)} = {toml.value(data)}" for name, data in plain_keys(policy).items()]
    for name, items in list_keys(policy).items():
        lines += [f"{name} = [", *(f"  {toml.value(item)}," for item in items), "]"] if items else []
    for name, members in table_keys(policy).items():
        if members:
            lines += ["", f"[{name}]", *(f"{toml.key(key)} = {toml.value(data)}" for key, data in members.items())]
    return "\n".join((*lines, ""))


def plain_keys(policy):
    """The keys of POLICY that are neither lists of tables nor tables: {key: value}."""
    found = {name: getattr(policy, name) for name in PLAIN if getattr(policy, name) is not None}
    if not policy.procfs:
        found["mount_new_procfs"] = False
    return found


def list_keys(policy):
    """The keys of POLICY that are lists of tables: {key: [table, ...]}."""
    mounts = [mount for mount in map(mount_table, policy.tree) if mount]
    files = [entry for entry in policy.tree if isinstance(entry, sandbox.File)]
    env = [{"name": "pass", "value": value} for name, value in environment(policy).items() if spelt_out(policy, name)]
    return {
        "namespaces": [{"type": name, "share": True} for name in policy.share],
        "mounts": mounts,
        "files": [{"target": entry.dst, "contents": entry.contents} for entry in files],
        "envs": env,
    }


def mount_table(entry):
    """ENTRY as one of mounts; nothing if it is none."""
    if isinstance(entry, sandbox.Bind):
        found = {"source": entry.src, "target": entry.dst, **({} if "ro" in entry.flags else {"rw": True})}
        found.update({flag: True for flag in ("noexec", "norec", "optional") if flag in entry.flags})
        dev = "dev" in entry.flags
        return found if dev == sandbox.is_device(entry.src) else {**found, "dev": dev}
    kinds = {sandbox.Tmpfs: "tmpfs", sandbox.Dev: "devfs", sandbox.Proc: "proc"}
    if type(entry) not in kinds:
        return {}
    size = getattr(entry, "size", None)
    return {"target": entry.dst, "fstype": kinds[type(entry)], **({} if size is None else {"size": size})}


def environment(policy):
    """The variables that POLICY sets: {NAME: VALUE}, the caller's as they are now."""
    for name, value in policy.env.items():
        if value is None and name not in os.environ:
            raise Failure(f"--env: not set here: {name!r}")
    return {name: os.environ[name] if value is None else value for name, value in policy.env.items()}


def spelt_out(policy, name):
    """Whether the variable NAME of POLICY cannot be a key of [env]: pass, if that is a list there."""
    return name == "pass" and bool(policy.passed)


def table_keys(policy):
    """The keys of POLICY that are tables: {key: table}."""
    directories = [{"destination": entry.dst} for entry in policy.tree if isinstance(entry, sandbox.Directory)]
    symlinks = [
        {"original": entry.target, "link": entry.dst} for entry in policy.tree if isinstance(entry, sandbox.Symlink)
    ]
    root = {"writable": policy.writable or None, "size": policy.size}
    network = {"mode": policy.network, "options": policy.network_options or None}
    env = {name: value for name, value in environment(policy).items() if not spelt_out(policy, name)}
    tables = {
        "filesystem": {"dirs": directories or None, "symlinks": symlinks or None},
        "root": root,
        "network": network if policy.network != "none" else {},
        "env": {"pass": list(policy.passed) or None, **env} if policy.passed else env,
        "limits": policy.limits,
        "cgroup": policy.cgroup,
        "seccomp": seccomp_table(policy.seccomp),
        "landlock": landlock_table(policy),
        "command": {"cmdline": policy.cmdline, "cwd": policy.cwd},
    }
    return {name: {key: data for key, data in members.items() if data is not None} for name, members in tables.items()}


def seccomp_table(seccomp):
    """SECCOMP, a field of a Policy, as a table."""
    if seccomp is None:
        return {}
    if isinstance(seccomp, str):
        return {"rules": seccomp}
    return {"dismatch_action": seccomp[0], "syscalls": seccomp[1]}


def landlock_table(policy):
    """What POLICY says of Landlock as a table."""
    found = {}
    paths, ports = policy.landlock_paths, policy.landlock_ports
    if paths is not None:
        found = {access: [path for path, allowed in paths.items() if allowed == access] for access in ACCESS}
        found = {access: named for access, named in found.items() if named} or {"ro": []}
    if ports is not None:
        allowed = {right: [port for known, port in ports if known == right] for right in RIGHTS}
        found.update({right: named for right, named in allowed.items() if named} or {"bind_tcp": []})
    return {**found, "scope": list(policy.landlock_scopes) or None}
