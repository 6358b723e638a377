"""Command line of every entry point: Hydra overrides in, one line and exit code 2 on a user's error.

The config is composed with Hydra's compose API, so that no output folder, no log file and no change of directory
come with it, and ``--help`` answers before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER_ERROR = 2
RANK_ZERO_SECONDS = 3.0  # by which another rank's message waits for rank 0's


def config_dir() -> Path:
    """Folder of the yaml files: inside the installed package, or beside the package in a checkout.

    Raises:
        FileNotFoundError: neither folder exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no conf/ folder in {package} or {package.parent}; reinstall nemo_moslim")


@dataclass(frozen=True)
class CommandLine:
    """Arguments of one call, sorted by how they are read."""

    overrides: list[str]  # for Hydra's parser
    verbatim: dict[str, str]  # key -> text that must reach the config unchanged
    flags: frozenset[str]  # of --help, --cfg, --traceback


def split_arguments(argv: Sequence[str], verbatim_keys: Sequence[str], path_keys: Sequence[str]) -> CommandLine:
    """Sort command line arguments into Hydra overrides, verbatim values and flags.

    A key of ``verbatim_keys`` takes everything after the first ``=`` as text. A key of ``path_keys`` does too, unless
    the value is ``null``, a ``[list]`` or quoted, which Hydra reads.

    Raises:
        ValueError: an unknown flag, or an argument that is not ``key=value``.
    """
    overrides: list[str] = []
    verbatim: dict[str, str] = {}
    flags: set[str] = set()
    for argument in argv:
        key, equals, value = argument.partition("=")
        is_path = key in path_keys and value != "null" and not value.startswith(("[", '"', "'"))
        if equals and (key in verbatim_keys or is_path):
            verbatim[key] = value
        elif argument in ("-h", "--help"):
            flags.add("--help")
        elif argument in ("--cfg", "--traceback"):
            flags.add(argument)
        elif argument.startswith("-"):
            raise ValueError(f"unknown option {argument!r}; options are --help, --cfg, --traceback, settings key=value")
        elif not equals and not argument.startswith("~"):
            raise ValueError(f"cannot read {argument!r}: settings are written key=value (see --help)")
        else:
            if key in path_keys:
                verbatim.pop(key, None)  # the last one given counts
            overrides.append(argument)
    return CommandLine(overrides, verbatim, frozenset(flags))


def compose_config(
    config_name: str,
    argv: Sequence[str] = (),
    *,
    verbatim_keys: Sequence[str] = (),
    path_keys: Sequence[str] = (),
    open_keys: Sequence[str] = ("preferences",),
) -> Any:
    """Compose ``conf/<config_name>.yaml`` with overrides into a struct-mode DictConfig.

    ``+key=…`` and ``~key`` are taken for config groups and below ``open_keys`` only: anywhere else they would add or
    remove a setting that no code reads or that code needs.

    Raises:
        ValueError: an unknown key (named, with the nearest known one), group choice, or an unreadable override.
    """
    line = split_arguments(argv, verbatim_keys, path_keys)
    return _compose(config_name, line, open_keys)


def _compose(config_name: str, line: CommandLine, open_keys: Sequence[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf

    folder = config_dir()
    _refuse_closed_additions(folder, line.overrides, open_keys)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            config = compose(config_name, overrides=line.overrides)
        except MissingConfigException as error:
            raise ValueError(_missing_choice(error)) from error
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            remedy = "quote its value (in a list of settings each of them: \"key=['a=1','b=2']\")"
            raise ValueError(f"cannot read the setting {error.override!r}: {reason}; {remedy}") from error
        except ConfigCompositionException as error:
            unknown = re.search(r"Could not (?:override|append to|delete from) '([^']+)'", str(error))
            unknown = unknown or re.search(r"Could not delete from config\.\s*'([^']+)'", str(error))
            if unknown is None:
                raise ValueError(f"cannot compose the settings: {error}") from error
            groups = [o for o in line.overrides if (folder / o.partition("=")[0].lstrip("+")).is_dir()]
            known = compose(config_name, overrides=groups)
            raise ValueError(unknown_key_message(known, unknown.group(1))) from error
    for key, text in line.verbatim.items():
        if not _has_key(config, key):
            raise ValueError(unknown_key_message(config, key))
        OmegaConf.update(config, key, escape_interpolation(text), merge=False)
    OmegaConf.set_struct(config, True)
    return config


def _refuse_closed_additions(folder: Path, overrides: Sequence[str], open_keys: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        is_open = key.partition(".")[0] in open_keys or key.startswith("hydra.") or (folder / key).is_dir()
        if override.startswith(("+", "~")) and not is_open:
            raise ValueError(
                f"cannot take {override!r}: settings are added or removed only below {', '.join(open_keys)}; "
                f"write {key}=VALUE to change an existing one"
            )


def escape_interpolation(text: str) -> str:
    """Escape ``${`` so that OmegaConf reads ``text`` back unchanged."""
    if "${" not in text:
        return text
    return re.sub(r"(\\*)\$\{", lambda match: match.group(1) * 2 + r"\${", text)


def _has_key(config: Any, dotted: str) -> bool:
    node = config
    for part in dotted.split("."):
        if not hasattr(node, "keys") or part not in node.keys():
            return False
        node = node._get_node(part)
    return True


def unknown_key_message(config: Any, dotted: str) -> str:
    """One line that names an unknown ``a.b.c`` key, the nearest known one, and the keys of that section."""
    node, seen = config, []
    for part in dotted.split("."):
        keys = [str(key) for key in node.keys()] if hasattr(node, "keys") else []
        if part not in keys:
            break
        seen.append(part)
        node = node._get_node(part)
    if not keys or part in keys:
        return f"unknown setting {dotted!r}: {'.'.join(seen)!r} is a single value"
    near = difflib.get_close_matches(part, keys, n=1)
    rest = dotted.split(".")[len(seen) + 1 :]
    hint = f"; did you mean {'.'.join([*seen, near[0], *rest])!r}?" if near else ""
    section = f" of {'.'.join(seen)!r}" if seen else ""
    return f"unknown setting {dotted!r}{hint} (keys{section}: {', '.join(sorted(keys))})"


def _missing_choice(error: Any) -> str:
    missing = error.missing_cfg_file
    group, _, choice = str(missing).rpartition("/")
    options = [option for option in error.options or () if option]
    if not group or not options:
        return str(error)
    near = difflib.get_close_matches(choice, options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown choice {group}={choice}{hint} (choices: {', '.join(options)})"


def help_text(config_name: str, function: Callable[[Any], Any]) -> str:
    """Usage, docstring, the choices of each config group, and the commented yaml, shared settings included."""
    folder = config_dir()
    program = os.path.relpath(sys.argv[0]) if sys.argv[0] else config_name
    module = sys.modules.get(function.__module__)
    about = inspect.getdoc(function) or inspect.getdoc(module) or ""
    yaml_text = (folder / f"{config_name}.yaml").read_text(encoding="utf-8").rstrip()
    groups = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        if re.search(rf"^\s*-\s*(optional\s+)?{re.escape(group.name)}:", yaml_text, re.MULTILINE):
            groups.append(f"  {group.name}={'|'.join(sorted(path.stem for path in group.glob('*.yaml')))}")
    choices = "\nChoices:\n" + "\n".join(groups) + "\n" if groups else ""
    for name in re.findall(r"^ *- (\w+)$", yaml_text, re.MULTILINE):
        shared = folder / f"{name}.yaml"  # a file of the defaults list; _self_ is none
        if shared.is_file():
            yaml_text += f"\n\nand of conf/{name}.yaml:\n\n{shared.read_text(encoding='utf-8').rstrip()}"
    return (
        f"usage: python {program} key=value …   [--cfg: print the settings] [--traceback: full errors]\n\n"
        f"{about}\n{choices}\nSettings and their defaults (conf/{config_name}.yaml):\n\n{yaml_text}\n"
    )


def hydra_main(
    config_name: str,
    *,
    verbatim_keys: Sequence[str] = (),
    path_keys: Sequence[str] = (),
    open_keys: Sequence[str] = ("preferences",),
) -> Callable[[Callable[[Any], int | None]], Callable[..., None]]:
    """Turn ``function(config)`` into an entry point that reads ``key=value`` arguments (``sys.argv`` by default).

    ValueError, OSError and the config library's errors print one line ``error: …`` and exit with code 2; under torchrun
    rank 0 prints, every rank exits 2 and leaves its message for the launcher's summary. FloatingPointError, a training
    that met NaN, does so with exit code 1. Anything else is a bug and keeps its traceback. A non-zero integer returned
    by ``function`` is the exit code.
    """

    def decorate(function: Callable[[Any], int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def entry(argv: Sequence[str] | None = None) -> None:
            arguments = sys.argv[1:] if argv is None else list(argv)
            if "--traceback" in arguments:
                code = _call(config_name, function, arguments, verbatim_keys, path_keys, open_keys)
            else:
                from omegaconf.errors import OmegaConfBaseException

                try:
                    code = _call(config_name, function, arguments, verbatim_keys, path_keys, open_keys)
                except BrokenPipeError:  # the reader of our output, such as head, has gone: nothing to tell it
                    sys.stdout = open(os.devnull, "w", encoding="utf-8")
                    code = 0
                except (ValueError, OSError, OmegaConfBaseException) as error:
                    report_user_error(error)
                    code = USER_ERROR
                except FloatingPointError as error:  # a training whose numbers are no longer any
                    report_user_error(error)
                    code = 1
                except KeyboardInterrupt:
                    code = 130
            if code:
                sys.exit(code)

        return entry

    return decorate


def _call(
    config_name: str,
    function: Callable[[Any], int | None],
    arguments: Sequence[str],
    verbatim_keys: Sequence[str],
    path_keys: Sequence[str],
    open_keys: Sequence[str],
) -> int | None:
    line = split_arguments(arguments, verbatim_keys, path_keys)
    if "--help" in line.flags:
        print(help_text(config_name, function))
        return 0
    config = _compose(config_name, line, open_keys)
    if "--cfg" in line.flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config, resolve=True), end="")
        return 0
    # Hopper and before: communication starts ahead of the matrix product that hides it. Read when CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    return function(config)


def report_user_error(error: BaseException) -> None:
    """Print ``error: …`` as one line on stderr.

    Under torchrun rank 0 prints, and every rank leaves its message in the launcher's error file. Without it (srun) the
    other ranks give rank 0 time to say what all of them may have to say, since the first to end takes the rest along.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    rank = os.environ.get("RANK", "0")
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    elif not error_file:
        time.sleep(RANK_ZERO_SECONDS)
        print(f"error: rank {rank}: {message}", file=sys.stderr, flush=True)
    if error_file:
        Path(error_file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
