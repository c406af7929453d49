"""The command that shows what a machine lacks."""

import click

from serving.cli.command import CONTEXT, Command
from serving.console import finish, say
from serving.errors import VaeError


@click.command(cls=Command, context_settings=CONTEXT)
@click.option(
    "--repair-store",
    is_flag=True,
    help="First correct the paths in an sqlite store whose folder was moved or copied",
)
def doctor(repair_store: bool) -> None:
    """Show what this machine lacks, and the command that fixes it.

    Example: vae doctor
    """
    from pipeline.cli import doctor as this_machine

    if repair_store:
        this_machine.repair_store()
    findings = this_machine.examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {"ok": " ok ", "warning": "warn", "failed": "FAIL"}[finding.status]
        say(f"{mark}  {finding.subject:<{width}}  {finding.detail}")
        if finding.fix:
            say(f"      {'':<{width}}  → {finding.fix}")
    failed = [finding.subject for finding in findings if finding.status == "failed"]
    finish({"ok": not failed, "failed": failed})
    if failed:
        raise VaeError(f"{len(failed)} of {len(findings)} findings failed: {', '.join(failed)}")
