"""Precedence, conversion, defaults, and errors that name setting, origin and mend."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from torpor.daemon import configuration
from torpor.model.errors import BadSettings
from torpor.model.settings import Settings


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"TORPOR_DATA_DIR": str(tmp_path)}


def bad(flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None = None) -> str:
    with pytest.raises(BadSettings) as caught:
        configuration.load(flags, environ, file)
    return str(caught.value)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    settings = configuration.load({"data_dir": str(tmp_path)}, {"HOME": "/home/ann"})
    assert settings.data_dir == str(tmp_path)
    assert settings.postgres_home == str(configuration.default_data_dir({"HOME": "/home/ann"}) / "postgres")
    assert settings.image_home == str(configuration.default_data_dir({"HOME": "/home/ann"}) / "images")
    assert settings.history_store == str(tmp_path / "history")
    assert settings.key_file == str(tmp_path / "master.key")
    assert settings.pool_key_file == str(tmp_path / "pool.key")
    assert settings.public_host == "127.0.0.1"
    for field in fields(Settings):
        if field.name not in ("data_dir", "postgres_home", "image_home", "history_store", "key_file", "pool_key_file", "public_host"):
            assert getattr(settings, field.name) == field.default


@pytest.mark.parametrize(("uid", "expected"), [(0, "/var/lib/torpor"), (1000, "/home/ann/.local/share/torpor")])
def test_default_data_dir(uid: int, expected: str) -> None:
    assert configuration.default_data_dir({"HOME": "/home/ann"}, uid) == Path(expected)


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "torpor.toml").write_text("door_port = 1001\napi_port = 1002\nwarm_pool_size = 3\n")
    environ |= {"TORPOR_DOOR_PORT": "2001", "TORPOR_API_PORT": "2002"}
    settings = configuration.load({"door_port": "3001"}, environ)
    assert (settings.door_port, settings.api_port, settings.warm_pool_size, settings.max_logins) == (3001, 2002, 3, 4096)


def test_empty_variables_count_as_absent(environ: dict[str, str]) -> None:
    assert configuration.load({}, environ | {"TORPOR_DOOR_PORT": ""}).door_port == 7432


@pytest.mark.parametrize("text", ["never", "Never", " never "])
def test_never_in_flags(environ: dict[str, str], text: str) -> None:
    assert configuration.load({"freeze_after_s": text}, environ).freeze_after_s is None


def test_file_values(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "torpor.toml"
    file.write_text('stop_after_s = "never"\nfreeze_after_s = 2\nrelay = true\npublic_host = "db.example.org"\n')
    settings = configuration.load({}, environ)
    assert settings.stop_after_s is None
    assert (settings.freeze_after_s, settings.relay, settings.public_host) == (2.0, True, "db.example.org")


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("0", False), ("OFF", False), ("1", True)])
def test_truth(environ: dict[str, str], text: str, value: bool) -> None:
    assert configuration.load({"relay": text}, environ).relay is value


def test_config_variable_may_move_the_data_directory(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text(f'data_dir = "{tmp_path}/data"\n')
    assert configuration.load({}, {"TORPOR_CONFIG": str(file), "HOME": "/home/ann"}).data_dir == f"{tmp_path}/data"


def test_wildcard_addresses_are_not_handed_out(environ: dict[str, str]) -> None:
    assert configuration.load({"door_host": "::"}, environ).public_host == "127.0.0.1"
    assert configuration.load({"door_host": "db.lan"}, environ).public_host == "db.lan"


def test_relative_directories_become_absolute(environ: dict[str, str]) -> None:
    assert configuration.load({"pg_bindir": "bin"}, environ).pg_bindir == str(Path.cwd() / "bin")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"door_port": "many"}, ["door_port", "'many'", "--door-port", "whole number"]),
        ({"door_port": "70000"}, ["door_port", "65535", "--door-port"]),
        ({"freeze_after_s": "soon"}, ["freeze_after_s", "--freeze-after-s", "never"]),
        ({"freeze_after_s": "-1"}, ["freeze_after_s", "0.1", "--freeze-after-s"]),
        ({"login_timeout_s": "nan"}, ["login_timeout_s", "number"]),
        ({"max_logins": "never"}, ["max_logins", "whole number"]),
        ({"relay": "perhaps"}, ["relay", "true or false"]),
        ({"tls": "sometimes"}, ["tls", "off, allow, remote, require", "--tls"]),
        ({"tls_key": "/key.pem"}, ["tls_key", "tls_cert"]),
        ({"relay_workers": "-1"}, ["relay_workers", "0 and 256"]),
        ({"log_format": "xml"}, ["log_format", "console or json", "--log-format"]),
        ({"dor_port": "1"}, ["dor_port", "did you mean door_port"]),
    ],
)
def test_errors_name_setting_origin_and_mend(environ: dict[str, str], flags: dict[str, str], parts: list[str]) -> None:
    text = bad(flags, environ)
    assert all(part in text for part in parts), text


def test_errors_name_the_variable(environ: dict[str, str]) -> None:
    assert "TORPOR_API_PORT" in bad({}, environ | {"TORPOR_API_PORT": "x"})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"door_port = ", ["torpor.toml", "TOML"]),
        (b"\xff\xfe", ["torpor.toml"]),
        (b'door_port = "x"', ["door_port", "torpor.toml"]),
        (b"door_port = true", ["door_port", "whole number"]),
        (b"door_port = 1.5", ["door_port", "whole number"]),
        (b"relay = 1", ["relay", "true or false"]),
        (b"freeze_after_s = nan", ["freeze_after_s"]),
        (b"[door]\nport = 1", ["'door'", "not a setting"]),
        (b'data_dir = "/srv"', ["data_dir", "--data-dir"]),
    ],
)
def test_bad_files(tmp_path: Path, environ: dict[str, str], content: bytes, parts: list[str]) -> None:
    (tmp_path / "torpor.toml").write_bytes(content)
    text = bad({}, environ)
    assert all(part in text for part in parts), text


def test_a_named_file_must_exist(tmp_path: Path, environ: dict[str, str]) -> None:
    assert "absent.toml" in bad({}, environ, tmp_path / "absent.toml")
    assert "absent.toml" in bad({}, environ | {"TORPOR_CONFIG": str(tmp_path / "absent.toml")})
