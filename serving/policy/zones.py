"""Zones of the grid that exist, so that a misspelt one is found before the first request goes out.

Country codes are ISO 3166-1 alpha-2, the zone names of Electricity Maps for whole countries; the divided countries'
zones are Electricity Maps' as published on its map (United States: EIA balancing authorities in three regions' prefix
form). Respondents are those of the EIA-930 survey. WattTime regions and SDK locations cannot be enumerated.
"""

from __future__ import annotations

import re

_COUNTRIES_TEXT = """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
    CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO
    FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE
    JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO
    MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW
    PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM
    TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
"""
COUNTRIES = frozenset(_COUNTRIES_TEXT.split())
_PARTS_TEXT = """
    AU-NSW AU-NT AU-QLD AU-SA AU-TAS AU-TAS-FI AU-TAS-KI AU-VIC AU-WA BR-CS BR-N BR-NE BR-S CA-AB CA-BC CA-MB CA-NB
    CA-NL-NF CA-NS CA-NT CA-NU CA-ON CA-PE CA-QC CA-SK CA-YT CL-SEA CL-SEM CL-SEN DK-BHM DK-DK1 DK-DK2 ES-CE
    ES-CN-FVLZ ES-CN-GC ES-CN-HI ES-CN-IG ES-CN-LP ES-CN-TE ES-IB-FO ES-IB-IZ ES-IB-MA ES-IB-ME ES-ML FR-COR GB-NIR
    GB-ORK GB-SHI GB-ZET IN-EA IN-NE IN-NO IN-SO IN-WE IT-CNO IT-CSO IT-NO IT-SAR IT-SIC IT-SO JP-CB JP-CG JP-HKD
    JP-HR JP-KN JP-KY JP-ON JP-SK JP-TH JP-TK KR MY-EM MY-WM NO-NO1 NO-NO2 NO-NO3 NO-NO4 NO-NO5 NZ PH-LU PH-MI PH-VI
    PT-AC PT-MA RU-1 RU-2 RU-AS RU-EU RU-FE RU-KGD SE-SE1 SE-SE2 SE-SE3 SE-SE4 US-AK US-CAL-BANC US-CAL-CISO
    US-CAL-IID US-CAL-LDWP US-CAL-TIDC US-CAR-CPLE US-CAR-CPLW US-CAR-DUK US-CAR-SC US-CAR-SCEG US-CAR-YAD
    US-CENT-SPA US-CENT-SWPP US-FLA-FMPP US-FLA-FPC US-FLA-FPL US-FLA-GVL US-FLA-HST US-FLA-JEA US-FLA-NSB
    US-FLA-SEC US-FLA-TAL US-FLA-TEC US-HI US-MIDA-PJM US-MIDW-AECI US-MIDW-LGEE US-MIDW-MISO US-NE-ISNE US-NW-AVA
    US-NW-BPAT US-NW-CHPD US-NW-DOPD US-NW-GCPD US-NW-GRID US-NW-IPCO US-NW-NEVP US-NW-NWMT US-NW-PACE US-NW-PACW
    US-NW-PGE US-NW-PSCO US-NW-PSEI US-NW-SCL US-NW-TPWR US-NW-WACM US-NW-WAUW US-NY-NYIS US-SE-SEPA US-SE-SOCO
    US-SW-AZPS US-SW-EPE US-SW-PNM US-SW-SRP US-SW-TEPC US-SW-WALC US-TEN-TVA US-TEX-ERCO
"""
PARTS = frozenset(_PARTS_TEXT.split())
_EIA_RESPONDENTS_TEXT = """
    AECI AVA AVRN AZPS BANC BPAT CAL CAR CENT CHPD CISO CPLE CPLW DEAA DOPD DUK EEI EPE ERCO FLA FMPP FPC FPL GCPD
    GRID GRIF GRMA GVL GWA HGMA HST IID IPCO ISNE JEA LDWP LGEE MIDA MIDW MISO NE NEVP NSB NW NWMT NY NYIS PACE PACW
    PGE PJM PNM PSCO PSEI SC SCEG SCL SE SEC SEPA SOCO SPA SRP SW SWPP TAL TEC TEN TEPC TEX TIDC TPWR TVA US48 WACM
    WALC WAUW WWA YAD
"""
EIA_RESPONDENTS = frozenset(_EIA_RESPONDENTS_TEXT.split())
ENTSOE_COUNTRIES = frozenset({"AT", "BE", "CH", "CZ", "DE", "ES", "FI", "FR", "NL", "PL", "PT"})
_EIC = re.compile(r"^\d{2}[A-Z0-9-]{14}$")
_ALSO_CALLED = {"UK": "GB", "USA": "US", "EL": "GR", "DEU": "DE", "FRA": "FR", "GBR": "GB"}


def known_zones(feed_type: str | None = None) -> frozenset[str] | None:
    """Zones a feed of that type can serve; `None` where they cannot be enumerated. Without a type: all of them."""
    if feed_type == "uk_grid":
        return frozenset({"GB"})
    if feed_type == "electricity_maps":
        return COUNTRIES | PARTS
    if feed_type == "eia":
        return EIA_RESPONDENTS
    if feed_type == "entsoe":
        return ENTSOE_COUNTRIES
    return COUNTRIES | PARTS | EIA_RESPONDENTS if feed_type is None else None


def serves(feed_type: str, zone: str) -> bool:
    """Whether a feed of that type may know the zone."""
    if feed_type == "entsoe" and _EIC.match(zone):
        return True
    known = known_zones(feed_type)
    return known is None or zone in known


def other_name(zone: str) -> str | None:
    """The zone's name where a common other one was used: UK for GB."""
    return _ALSO_CALLED.get(zone.upper())
