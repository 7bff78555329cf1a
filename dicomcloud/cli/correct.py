"""`correct` and `merge`: what was stored under a wrong patient or study is put right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from ..archive.correction import Corrected, as_text
from .program import Program, commands, count


@commands.command()
@click.argument("study")
@click.option(
    "--set", "values", multiple=True, required=True, metavar="NAME=VALUE", help="Attribute by keyword or tag."
)
@click.option("--apply", is_flag=True, help="Do it; without, it is only told what would change.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def correct(program: Program, study: str, values: Sequence[str], apply: bool, as_json: bool) -> None:
    """Give patient and study attributes of STUDY, a Study Instance UID, other values.

    Every instance gets a new version, whose Original Attributes Sequence tells the old values; the version from before
    is kept aside. The server may run meanwhile.
    """
    pairs = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--set {value}: write it as NAME=VALUE, e.g. --set PatientID=4711")
        pairs[name] = text
    with program.archive() as archive:
        try:
            found = archive.correction.correct(study, pairs, dry_run=not apply)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    _tell([found], apply, as_json)


@commands.command()
@click.argument("one", metavar="FROM")
@click.argument("other", metavar="INTO")
@click.option("--studies", is_flag=True, help="FROM and INTO are Study Instance UIDs, not Patient IDs.")
@click.option("--issuer", default="", help="Issuer of Patient ID of FROM.")
@click.option("--into-issuer", default="", help="Issuer of Patient ID of INTO.")
@click.option("--apply", is_flag=True, help="Do it; without, it is only told what would change.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def merge(
    program: Program, one: str, other: str, studies: bool, issuer: str, into_issuer: str, apply: bool, as_json: bool
) -> None:
    """Merge patient FROM into patient INTO, or a study into another.

    The studies of FROM get ID, issuer, name, birth date and sex of INTO. With --studies, the series of one study join
    the other and say of patient and study what that one says; series, instances and their UIDs stay.
    """
    with program.archive() as archive:
        if studies:
            found = [archive.correction.merge_studies(one, other, dry_run=not apply)]
        else:
            found = list(archive.correction.merge_patients((one, issuer), (other, into_issuer), dry_run=not apply))
    _tell(found, apply, as_json)


def _tell(found: Sequence[Corrected], applied: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"applied": applied, "studies": [asdict(each) for each in found]}, indent=2))
        return
    for line in as_text(found):
        click.echo(line)
    instances = sum(each.instances for each in found)
    done = "Changed" if applied else "Would change"
    click.echo(f"{done} {instances} instances of {count(found, 'study').replace('studys', 'studies')}.")
    if not applied:
        click.echo("Nothing was changed; --apply does it.")
