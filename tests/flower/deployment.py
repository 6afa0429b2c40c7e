"""A real Flower deployment on this machine's loopback: SuperLink and SuperNodes over TLS, nodes authenticated.

`python -m tests.flower.deployment DIRECTORY` runs the example app on it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secagg.adapters.flower import enrol, write_agreement, write_roster
from secagg.adapters.flower.node import AGREEMENT, ROSTER

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
START_SECONDS = 60
REPORT = """
    import json
    from pathlib import Path

    Path({path!r}).write_text(json.dumps({{
        "rounds": [
            {{"survivors": sorted(one.survivors), "mean": {{name: array.tolist() for name, array in one.mean.items()}}}}
            for one in secure.results
        ],
        "failures": [[one.round, one.client, one.stage, one.reason] for one in secure.failures],
        "aborted": aborted,
    }}))
"""


START = """
from secagg import TooFewClientsError


def start(strategy, **options):
    try:
        strategy.start(**options)
    except TooFewClientsError as error:
        return str(error)
    return None


"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """The ids of all processes below one: Flower's workers outlive a parent that is killed alone."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = [pid]
    for one in below:
        below += [child for child, parent in parents.items() if parent == one]
    return below[1:]


def make_certificates(directory: Path) -> None:
    """A certificate authority and a server certificate for the loopback address."""
    now = datetime.now(UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        )
        if name == "ca":
            usage = x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            )  # fmt: skip
            builder = builder.add_extension(usage, critical=True)
        certificate = builder.sign(keys["ca"], hashes.SHA256())
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}.key").write_bytes(private)


def make_node_key(path: Path) -> None:
    """What `ssh-keygen -t ecdsa -b 384` makes."""
    key = ec.generate_private_key(ec.SECP384R1())
    encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(encoding, private, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)


class Deployment:
    """One SuperLink and its SuperNodes; a context manager that ends every process it started.

    Args:
        directory: for keys, logs and the nodes' own directories.
        settings: the `secagg-` keys that all nodes agree to.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self.directory = directory
        self.clients = range(1, int(settings["secagg-clients"]) + 1)
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarted: dict[str, int] = {}
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(directory / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "PYTHONUNBUFFERED": "1",
        }
        (directory / "home").mkdir(parents=True)
        make_certificates(directory)
        (directory / "home" / "config.toml").write_text(
            f'[superlink.loopback]\naddress = "{HOST}:{self.port}"\nroot-certificates = "{directory / "ca.crt"}"\n'
        )
        identities = {client: enrol(self.node(client), client) for client in self.clients}
        write_roster(directory / ROSTER, identities)
        for client in self.clients:
            make_node_key(directory / f"node-{client}")
            write_roster(self.node(client) / ROSTER, identities)
            write_agreement(self.node(client) / AGREEMENT, settings)

    def node(self, client: int) -> Path:
        """A node's own directory."""
        return self.directory / f"hospital-{client}"

    def __enter__(self) -> Deployment:
        self._start("superlink", "flower-superlink", *self._tls(), "--enable-supernode-auth",
                    "--disable-runtime-dependency-installation", "--host", HOST, "--port", str(self.port))  # fmt: skip
        self.wait(lambda: self._listening(self.port), "the SuperLink listens")
        for client in self.clients:
            self.flwr("supernode", "register", str(self.directory / f"node-{client}.pub"), "loopback")
            self.start_node(client)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)

    def start_node(self, client: int) -> None:
        """Starts a SuperNode, or starts it again."""
        here = self.directory
        config = f'partition-id={client - 1} num-partitions={len(self.clients)} secagg-node="{self.node(client)}"'
        self._start(f"node-{client}", "flower-supernode", *self._tls(), "--root-certificates", str(here / "ca.crt"),
                    "--auth-supernode-private-key", str(here / f"node-{client}"), "--node-config", config,
                    "--superlink", f"{HOST}:{self.port}", "--host", HOST, "--port", str(free_port()))  # fmt: skip

    def restart_node(self, client: int) -> None:
        """Kills a SuperNode, and starts it again as soon as the SuperLink lets it in."""
        self.kill(f"node-{client}")
        self.restarted[f"node-{client}"] = client
        self.start_node(client)

    def kill(self, name: str) -> None:
        """Ends a process that this object started, and all that it started in turn, by their ids."""
        process = self.processes.pop(name)
        for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def flwr(self, *arguments: str) -> str:
        """Runs Flower's command line."""
        done = subprocess.run(
            [BIN / "flwr", *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"flwr {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def start_run(self, app: Path, overrides: Mapping[str, Any]) -> None:
        """Starts a run, whose log is followed."""
        changes = " ".join(f"{name}={json.dumps(value)}" for name, value in overrides.items())
        self._start("run", "flwr", "run", str(app), "loopback", "--stream", "--run-config", changes)

    @property
    def run_is_over(self) -> bool:
        """Whether the run has ended."""
        return "run" in self.processes and self.processes["run"].poll() is not None

    def wait_for_run(self, seconds: float) -> str:
        """The log of the run, once it is over."""
        self.wait(lambda: self.run_is_over, "the run ends", seconds)
        return self.log("run").read_text()

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.directory / f"{name}.log"

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Waits in small steps, for a bounded time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            for name, process in list(self.processes.items()):
                if process.poll() in (None, 0):
                    continue
                if name in self.restarted:  # refused as long as the SuperLink takes the killed one for alive
                    time.sleep(1)
                    self.start_node(self.restarted[name])
                else:
                    raise RuntimeError(f"{name} ended with {process.returncode}: {self.log(name).read_text()[-2000:]}")
            time.sleep(0.02)

    def _tls(self) -> tuple[str, ...]:
        here = self.directory
        return ("--ssl-ca-certfile", str(here / "ca.crt"), "--ssl-certfile", str(here / "server.crt"),
                "--ssl-keyfile", str(here / "server.key"))  # fmt: skip

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [BIN / program, *arguments], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self.environment, start_new_session=True, cwd=self.directory,
            )  # fmt: skip

    @staticmethod
    def _listening(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0


def copy_app(directory: Path, settings: Mapping[str, Any], report: Path, *, timeout: float) -> Path:
    """The example app with other settings, a bounded time for training, and a server that writes what came out."""
    app = directory / "app"
    shutil.copytree(ROOT / "examples" / "flower_app", app, ignore=shutil.ignore_patterns("__pycache__"))
    project = app / "pyproject.toml"
    kept = [line for line in project.read_text().splitlines() if not line.startswith("secagg-")]
    changed = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project.write_text("\n".join([*kept, *changed, ""]))
    server = app / "hospitals" / "server_app.py"
    source = server.read_text().replace("evaluate_fn=evaluate,", f"evaluate_fn=evaluate, timeout={timeout},")
    source = source.replace("    strategy.start(", "    aborted = start(strategy,").replace(
        "    print(secure.statement())\n", ""
    )
    server.write_text(START + source + REPORT.format(path=str(report)))
    return app


SETTINGS: dict[str, Any] = {
    "secagg-clients": 4, "secagg-max-dropouts": 1, "secagg-max-colluders": 0, "secagg-clip-norm": 1.0,
    "secagg-epsilon": 8.0, "secagg-delta": 1e-5, "secagg-rounds": 3, "secagg-metrics": "train_loss:0:2",
}  # fmt: skip


def main(directory: Path) -> None:
    with Deployment(directory, SETTINGS) as deployment:
        deployment.start_run(
            ROOT / "examples" / "flower_app",
            {
                **SETTINGS,
                "num-server-rounds": SETTINGS["secagg-rounds"],
                "secagg-simulation": False,
                "secagg-roster": str(directory / ROSTER),
            },
        )
        print(deployment.wait_for_run(300))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
