"""Find the folders of splits in a folder, such as `train` and `test`, or `Training` and `Testing`.

In: a folder. Out: the folder of each split, or none. Raises `DataRefused` if rows would be ignored,
or rows to test on be mixed with those to train on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from serving.console import say
from serving.errors import DataRefused
from serving.io.array_choice import SplitName, find_split
from serving.io.image_files import is_image_name
from serving.io.image_folders import list_files
from serving.io.remote_paths import Place, list_folder

_PLAIN = frozenset(("set", "data", "dataset", "image", "images", "img", "imgs", "split"))
"""Words beside the split that say no more: `training_set`, `images_train`."""
_LISTED = 4
_LISTED_NAMES = 8


def find_split_folders(folder: Place) -> Mapping[SplitName, Place]:
    """Find the folders of splits; empty if the folders are none, as those of labels."""
    shown = (path for path in list_folder(folder) if path.name[0] not in "._")
    folders = [path for path in shown if path.is_dir()]
    named = _find_named(folders)
    others = [path for path in folders if path not in named.values()]
    if not named or named.keys() == {"train"}:  # which may be a label: a train beside a bus
        return {}
    if "train" not in named:
        if len(folders) == 1:
            return {}
        raise DataRefused(
            f"{folder} has {_list(named.values())} but no 'train': its rows would be trained on; "
            "put the rows to train on into 'train'"
        )
    if others:
        raise DataRefused(
            f"{folder} has {_list(others)} beside {_list(named.values())}: move it into one of "
            "them, or away"
        )
    return named


def _find_named(folders: Sequence[Place]) -> dict[SplitName, Place]:
    """Find the folders that name a split; `seg_train` does so beside `seg_test`."""
    named: dict[SplitName, Place] = {}
    told = {path: find_split(path.name) for path in folders if "=" not in path.name}
    rests = [rest for split, rest in told.values() if split]
    for path, (split, rest) in told.items():
        if split is None or not (rest <= _PLAIN or rests.count(rest) > 1):
            continue
        if split in named:
            raise DataRefused(
                f"{path.parent} has {_list((named[split], path))}, which both name one split: "
                "keep one of them"
            )
        named[split] = path
    return {split: named[split] for split in get_args(SplitName) if split in named}


def _list(paths: Iterable[Place]) -> str:
    names = [repr(path.name) for path in paths]
    return " and ".join(filter(None, (", ".join(names[:-1][:_LISTED]), names[-1])))


def tell_split_folders(folder: Place, folders: Mapping[SplitName, Place]) -> None:
    """Say what the folders of splits are for; refuse images beside them."""
    beside = list_shown(folder)
    if rows := [name for name in beside if is_image_name(name)]:
        named = join_names(path.name for path in folders.values())
        raise DataRefused(
            f"{folder} has {join_names(rows)} beside {named}: "
            "move images into one of these folders, or away"
        )
    said = tell_splits({split: path.name for split, path in folders.items()})
    say(f"{folder}: {said}" + (f"; passed over {list_files(beside)}" if beside else ""))


def list_shown(folder: Place) -> list[str]:
    """Return the names of the files in a folder, without those that start with `_` or `.`."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.name[0] not in "._"
    )


def tell_splits(names: Mapping[SplitName, str]) -> str:
    """Say what each of the named sets is for."""
    uses = {"train": "to train on", "valid": "to validate on", "test": "to test on"}
    return ", ".join(f"{name} {uses[split]}" for split, name in names.items())


def join_names(names: Iterable[str]) -> str:
    """List names for a message."""
    every = list(names)
    more = f" and {len(every) - _LISTED_NAMES} more" if len(every) > _LISTED_NAMES else ""
    return ", ".join(every[:_LISTED_NAMES]) + more
