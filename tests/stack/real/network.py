"""Hosts of one network on this machine: each has an address, the names of the others, and files of its own.

What a container engine does for ``docker-compose.yml``, by network namespaces and a changed root: ports, names and
paths are those of the configurations, which are used as they are. Everything ends with this process, however it ends:
what holds a namespace is a process that the kernel ends with its parent.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.stack.real.programs import Missing

_TIED = ("setpriv", "--pdeathsig", "KILL")
"""Ends with the process that started it."""
_TOOLS = ("ip", "nsenter", "unshare", "setpriv", "chroot", "mount")
_DEVICES = ("/proc", "/dev")


@dataclass(eq=False)
class Server:
    """A program that runs on a host."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What it wrote so far, standard output and error."""
        return self.log.read_text("utf-8", errors="replace")

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.wait(60)


@dataclass(eq=False)
class Host:
    """A host: a network namespace, and a folder that is its root.

    Attributes:
        name: by which the others find it.
        address: in the network.
        root: its files.
    """

    name: str
    address: str
    root: Path
    _holder: subprocess.Popen[bytes]
    servers: list[Server] = field(default_factory=list)

    def mount(self, source: Path, target: str) -> None:
        """Show a file or folder at a path, read-only."""
        place = self.root / target.lstrip("/")
        if source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        self._inside("mount", "--bind", str(source), str(place))

    def start(self, program: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Server:
        """Run a server whose program needs no library; its root is the host's."""
        inner = f"/bin/{program.name}"
        if not (self.root / "bin" / program.name).exists():
            self.mount(program, inner)
        log = self.root / "tmp" / f"{program.name}.{len(self.servers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_TIED, *self._enter, "chroot", str(self.root), inner, *arguments],
                env={"PATH": os.environ["PATH"], "HOME": "/tmp", **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Server(process, log)
        self.servers.append(server)
        return server

    def command(self, *words: str) -> list[str]:
        """A command of this machine, run at the host's place in the network."""
        return [*_TIED, "nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *words]

    @property
    def _enter(self) -> list[str]:
        space = f"/proc/{self._holder.pid}/ns"
        return ["nsenter", f"--net={space}/net", f"--mount={space}/mnt", "--"]

    def _inside(self, *words: str) -> None:
        _run(*self._enter, *words)


@dataclass(eq=False)
class Network:
    """All hosts."""

    folder: Path
    _prefix: str
    _hub: subprocess.Popen[bytes]
    hosts: dict[str, Host] = field(default_factory=dict)
    _names: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str) -> Host:
        """A new host."""
        number = len(self.hosts) + 2
        holder = _namespace()
        address = f"{self._prefix}.{number}"
        inside = [*_in_network(holder), "ip"]
        _run(*_in_network(self._hub), "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0",
             "netns", f"/proc/{holder.pid}/ns/net")  # fmt: skip
        _run(*_in_network(self._hub), "ip", "link", "set", f"port{number}", "master", "bridge", "up")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        root = self.folder / name
        for part in ("etc", "tmp"):
            (root / part).mkdir(parents=True)
        (root / "etc" / "resolv.conf").touch()
        host = Host(name, address, root, holder)
        for device in _DEVICES:
            host.mount(Path(device), device)
        self.hosts[name] = host
        self.names([*self._names, (name, address)])
        return host

    def names(self, names: Sequence[tuple[str, str]]) -> None:
        """Who is found by which name; a name can have several addresses."""
        self._names = list(names)
        text = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names)
        for host in self.hosts.values():
            (host.root / "etc" / "hosts").write_text(text, "utf-8")

    def alias(self, name: str, *hosts: Host) -> None:
        """Let a name lead to these hosts, and to no other."""
        self.names([pair for pair in self._names if pair[0] != name] + [(name, host.address) for host in hosts])


_NUMBERS = itertools.count()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """An empty network that this process can reach.

    Raises:
        Missing: this process may not make one.
    """
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise Missing(f"no {lacking[0]} on this machine: apt-get install iproute2 util-linux")
    # The kernel removes the interface of an earlier network some time after its last process has ended.
    pid, number = os.getpid(), next(_NUMBERS)
    prefix, outside = f"10.{128 + (pid // 250 + number) % 100}.{pid % 250}", f"ace{pid}n{number}"
    hub = None
    found = None
    try:
        try:
            hub = _namespace()
            found = Network(folder, prefix, hub)
            pair = ("type", "veth", "peer", "name", "uplink", "netns", f"/proc/{hub.pid}/ns/net")
            _run("ip", "link", "add", outside, *pair)
            _run("ip", "address", "add", f"{prefix}.1/24", "dev", outside)
            _run("ip", "link", "set", outside, "up")
            inside = [*_in_network(hub), "ip", "link"]
            _run(*inside, "add", "bridge", "type", "bridge")
            _run(*inside, "set", "uplink", "master", "bridge", "up")
            _run(*inside, "set", "bridge", "up")
        except (subprocess.CalledProcessError, TimeoutError) as error:
            raise Missing("network namespaces are not allowed here: run the tests as root") from error
        yield found
    finally:
        for host in found.hosts.values() if found is not None else ():
            for server in host.servers:
                with suppress(ProcessLookupError):
                    server.kill()
            _end(host._holder)
        if hub is not None:
            _end(hub)


Found = TypeVar("Found")


def wait_until(found: Callable[[], Found], seconds: float, what: str) -> Found:
    """Ask until there is an answer.

    Raises:
        TimeoutError: there is none in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        if answer := found():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def _namespace() -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([*_TIED, "unshare", "--net", "--mount", "sleep", "infinity"], stderr=subprocess.DEVNULL)
    own = Path("/proc/self/ns/net").readlink()

    def ready() -> bool:
        if holder.poll() is not None:
            raise TimeoutError("unshare ended")
        folder = Path(f"/proc/{holder.pid}")
        return (folder / "ns" / "net").readlink() != own and (folder / "cmdline").read_bytes().startswith(b"sleep")

    wait_until(ready, 20, "a namespace of its own")
    return holder


def _in_network(holder: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
