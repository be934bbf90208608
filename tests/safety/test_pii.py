"""Personal data in labelled sentences. Every person, number and card here is made up."""

import bz2
import random
import re
import time
from collections import Counter

import pytest

from hfchat.safety.pii import KINDS, PII, luhn
from tests.conftest import SHARED_DATA

# What must be found is between « and », with its kind.
LABELLED = """\
Write to «email:jane.doe@gmail.com» for the slides.
Mail «email:j.r.smith+lists@cs.stanford.edu», please.
'«email:support@acme-tools.co.uk»' answers within a day.
<«email:Bob_Miller99@mail.example.travel»>
mailto:«email:info@kunst-haus.de»?subject=Hello
Kontakt: «email:jörg.müller@größe.de»
请联系«email:wang.lei@163.com»谢谢
Reach us at «email:sales@x1.io», or «email:press@x1.io».
{"mail": "«email:o'neil@nd.edu»"}
From: Ann Lee [«email:ann@lee.name»] Sent: Monday
«email:k.tanaka@keio.ac.jp»:hunter2 was in the leak.
Signed, «email:d-w@uni.edu».
A question of «email:5551234@txt.att.net» came in.
The image icon@2x.png is for dense screens.
git clone git@github.com:owner/name.git
user@host:~$ ls
root@web1.acme.com:~# systemctl restart nginx
ssh://git@git.kernel.org/pub/scm
Use @app.route and @property here.
npm install lodash@4.17.21 react@next
He sold 5 @ 3.50 each, at the Wolves @ Bulls game.
Follow @nasa on the site; ask alice@localhost.
The game ended 3 @-@ 1 after 90 minutes.
The logs show «ip:93.184.215.14» at noon.
Blocked: «ip:185.220.101.34», «ip:45.155.205.233».
http://«ip:203.0.112.77»:8080/index.html
from «ip:81.2.69.142»-«ip:81.2.69.160» in the night
[«ip:2a00:1450:4001:830::200e»]:443 replied.
ping «ip:2607:f8b0:4005:80a::200e»
IP:«ip:151.101.65.140»
Edited by «ip:24.37.112.38» (talk).
client=«ip:198.41.128.9», «ip:66.249.66.1» was a crawler.
It came from «ip:2601:191:8101:3289:9138:99C1:4572:BE9F».
Allow «ip:17.253.144.10»/32 only.
The router is at 192.168.1.254, the printer at 10.20.30.40.
Listen on 127.0.0.1 or 0.0.0.0; the mask is 255.255.255.0.
Version 12.34.56.78 fixes the crash, v2.10.33.4 did not.
Firefox 3.0.0.10 and iTunes 9.1.1.12 are old.
See section 3.2.1.4 and chapter 12.10.11.1.
Chrome/91.12.44.124 Safari/537.36
Meeting at 12:34:56, the MAC is 00:1a:2b:3c:4d:5e.
std::vector<add::bed> and dead::beef are names.
The example net is 2001:db8::8a2e:370:7334, here fe80::1.
The OID 1.3.6.1.4.1.311.21 is of Microsoft.
libfoo-1.22.33.44.tar.gz and 1.22.33.44-beta2
On 10.11.2012 it was 300.400.500.600 wide.
Call «phone:+1 650-253-0000» now.
Call «phone:(415) 863-2110», ask for Sam.
Office: «phone:312.744.5000»
«phone:212-736-5000» is the hotel's old number.
«phone:1-800-275-2273» is free.
Fax «phone:617 253 1000».
London: «phone:020 7219 3000», mobile «phone:07911 123456».
«phone:+44 (0)20 7946 0018» and «phone:+49 30 227 32152»
Ruf «phone:+43 1 4000 8400» oder «phone:+41446681800» an.
Tel.: «phone:6502530000»
Manchester «phone:0161 234 5000».
Paris «phone:+33 1 40 20 50 50»; Tokyo «phone:+81-3-3201-3331»
Phone number:
«phone:(202) 456-1111»
Ring «phone:01223 337733» before noon.
tel:«phone:+12024561414»
The office, «phone:(202) 456-1414 ext. 12», is closed.
In 1990-2005 there were 2,345,678 of them, 310 232 a year.
The years 1914 1918 1939 1945 were hard.
It has 281 421 906 people and 3 794 083 square miles.
ISBN 978-0-306-40615-7 and ISBN-10: 0-8044-2957-X
doi:10.1126/science.277.5325.494 is cited by 10.1136/bmj.327.7413.488
http://bmj.com/cgi/content/full/327/7413/488
Order 4155550123 was sent on 2023-04-05 12:30:00.
pi is 3.14159265358979 and e is 2.718281828459.
On 12/11/2013 and 2013-12-11 it paid $1,234,567.89.
File:Violin Scroll (2769099541).jpg
At (34.0522, -118.2437) or 34°03'08"N
Pages 233-274, 301-315, 402-488 of volume 108 (1948).
1 2 3 4 5 6 7 8 9 10 11 12
Scores: 21-17 19-21 21-15 21-18
{{cite book |isbn= 1-56000-132-1 |page=xi}} ISBN 1-902593-19-7, ISBN 90-04-10051-2
* ISBN 3-406-47998-7; ISBN 84-297-3521-6; ISBN 0-306-40615-2
|doi=10.5607/en.2015.24.4.273|pmc=4688328|doi=10.1089/acm.2006.12.1011
doc=Stoa:text:2003.01.0004, tlg001.perseus-eng1:14.338 14.338
Aula, 19-20/11/2004, and then 09-10-2005.
doi=10.1016/S0140-6736(09)61376-3
x = 650 - 253 * 1000 + 12
The build is 20230405.1234567890 of 1680697800.
She paid with «card:4111 1111 1111 1111» yesterday.
Card «card:4012888888881881», exp. 04/27
Amex «card:3782 822463 10005»
Amex: «card:371449635398431».
MC «card:5555-5555-5555-4444» and «card:5105105105105100»
Mir or not: «card:2223 0031 2200 3222»
Diners «card:3056 930902 5904»
Discover «card:6011111111111117»; JCB «card:3530 1113 3330 0000»
«card:6011 0009 9013 9424» 12/25 123
Visa:«card:4242424242424242»
UnionPay «card:6200 0000 0000 0005»
cc "«card:5200828282828210»" was declined
Maestro «card:6759649826438453»
The last one is 4111 1111 1111 1112, with a typo.
Timestamp 1609459200000, order 4539578763621487.
Barcode 4006381333931 is Stabilo's, EAN 5901234123457.
IMEI 356938035643809 and 490154203237518
a1b2c3d4-4242-4242-4242-424242424242
0.4111111111111111 is close to 37/90
commit 4242424242424242abcdef, id=4242424242424242
4000 1234 5678 9010 1234 5678 9010
ISBN 9780306406157 and 9783161484100
IBAN DE89 3704 0044 0532 0130 00
Population 4111 1111 1111 1111 2222 is a table
""".splitlines()
MARK = re.compile(r"«(\w+):(.*?)»")

SENTENCES = [
    "The committee met on 12 March 1998 to hear {} before it voted.",
    "If anything is missing, {} is where to ask; the office opens at 9:30.",
    "In 2007 about 1,450 people lived there ({}), 3.5 % more than in 1990-2005.",
    "He wrote it down: {}.",
    "- {}\n- the rest of the list, from pages 12-14",
    "Its contact of record has been {}, says the report of 2011/12.",
    "{} was scribbled on the back of a receipt for $23.99",
]


def parse(line):
    """A line without its marks, and the spans that were marked, `{(kind, start, end)}`."""
    text, spans, position = "", set(), 0
    for mark in MARK.finditer(line):
        text += line[position : mark.start()]
        spans.add((mark[1], len(text), len(text) + len(mark[2])))
        text, position = text + mark[2], mark.end()
    return text + line[position:], spans


def made_up(kind, rng):
    def digits(n):
        return "".join(rng.choices("0123456789", k=n))

    if kind == "email":
        name = rng.choice(["ana", "ben.k", "c_lopez", "d-ito", "e.f.g", "h7", "ivy+news"]) + rng.choice(
            ["", "1", "99"]
        )
        return f"{name}@{rng.choice(['mail', 'my-firm', 'uni.cs', 'x2'])}.{rng.choice(['com', 'de', 'org', 'co.uk'])}"
    if kind == "ip":
        if rng.random() < 0.3:
            return "2a02:" + ":".join(f"{rng.randrange(1, 1 << 16):x}" for _ in range(7))
        return ".".join(str(rng.randrange(11, 100)) for _ in range(4)).replace("100.", "101.", 1)
    if kind == "phone":
        area, middle = rng.choice(["212", "415", "312", "617", "206"]), f"{rng.randrange(2, 9)}{rng.randrange(20, 99)}"
        return rng.choice(["({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "+1{}{}{}", "1-{}-{}-{}"]).format(
            area, middle, digits(4)
        )
    number = rng.choice(["4" + digits(14), "5" + rng.choice("12345") + digits(13), "37" + digits(12)])
    number += next(check for check in "0123456789" if luhn(number + check))
    groups = [4, 6, 5] if len(number) == 15 else [4, 4, 4, 4]
    parts = [number[sum(groups[:i]) : sum(groups[: i + 1])] for i in range(len(groups))]
    return rng.choice(["", " ", "-"]).join(parts)


def planted(count=150, seed=1):
    """Lines as in `LABELLED`, each with two made-up values."""
    rng = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(2 * count)]
    marks = [f"«{kind}:{made_up(kind, rng)}»" for kind in kinds]
    return [" ".join(rng.choice(SENTENCES).format(mark) for mark in marks[i : i + 2]) for i in range(0, len(marks), 2)]


def evaluate(lines):
    """Precision and recall of each kind; a span counts if it is found exactly."""
    counts, pii = Counter(), PII()
    for line in lines:
        text, expected = parse(line)
        found = {(match.kind, match.start, match.end) for match in pii.find(text)}
        for name, spans in (("hit", found & expected), ("false", found - expected), ("missed", expected - found)):
            counts.update((kind, name) for kind, _, _ in spans)
    return {
        kind: tuple(
            counts[kind, "hit"] / max(1, counts[kind, "hit"] + counts[kind, other]) for other in ("false", "missed")
        )
        for kind in KINDS
    }


@pytest.mark.parametrize("lines", [LABELLED, planted()], ids=["written", "planted"])
def test_precision_and_recall(lines):
    scores = evaluate(lines)
    print(scores)
    for kind, (precision, recall) in scores.items():
        assert precision >= 0.95, (kind, precision)
        assert recall >= 0.95, (kind, recall)


def test_samples_are_of_every_kind():
    counts = Counter(kind for line in LABELLED for kind, _, _ in parse(line)[1])
    assert all(counts[kind] >= 12 for kind in KINDS), counts
    assert sum(not parse(line)[1] for line in LABELLED) >= 40


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("Write to a.b@uni.edu!", "Write to email@example.com!"),
        ("from 93.184.215.14 to 2a00:1450:4001:830::200e", "from 192.0.2.1 to 2001:db8::1"),
        ("(415) 863-2110 or +49 30 227 32152", "(555) 555-0100 or (555) 555-0100"),
        ("4111 1111 1111 1111, 371449635398431", "0000 0000 0000 0000, 0000 0000 0000 0000"),
        ("No. 7 of 1,234: nothing.", "No. 7 of 1,234: nothing."),
    ],
)
def test_values_are_replaced_by_others_of_their_kind(text, replaced):
    assert PII().replace(text)[0] == replaced


def test_replacements_are_counted_by_kind():
    text = "a@uni.edu, b@uni.edu and 93.184.215.14; email@example.com and 192.0.2.1 are nobody's"
    assert PII().replace(text)[1] == Counter(email=2, ip=1)


@pytest.mark.parametrize("regions", [("US", "GB"), ("BR", "CN", "TR", "IT", "MX"), ()])
def test_replacing_twice_changes_nothing(regions):
    pii, rng = PII(regions=regions), random.Random(5)
    fragments = ["212 ", "+1 ", "0", "(", " - ", ", ", ".", "/", "4111 ", "x", " tel ", "\n", "@", ":", "44 20 "]
    for _ in range(600):
        parts = [made_up(rng.choice(KINDS), rng) if rng.random() < 0.4 else rng.choice(fragments) for _ in range(6)]
        once = pii.replace("".join(parts))[0]
        assert pii.replace(once) == (once, Counter()), parts


@pytest.mark.parametrize(
    "text",
    [
        "212 020 7946 0018",  # what is left of a number before a replacement is no number with it
        "a@" + ("x" * 63 + ".") * 4 + "comaaa.org",
        "x" * 58 + "'longer.name@acme.com",
        "0201 2a00:1450::8a:/",
        "020/2a00:1450::8a192.0.2.1",
        "0+1 415 731 9183",
        "a@b.com@c.com",
    ],
)
def test_a_replacement_is_never_part_of_what_is_found(text):
    for regions in (("US", "GB"), ("DE", "FR", "ES", "AR")):
        once = PII(regions=regions).replace(text)[0]
        assert PII(regions=regions).find(once) == []


def test_only_the_kinds_and_regions_asked_for_are_found():
    text = "a@uni.edu 93.184.215.14 (415) 863-2110 0161 234 5000 4111 1111 1111 1111"
    assert [match.kind for match in PII(["ip", "email"]).find(text)] == ["email", "ip"]
    assert [match.text for match in PII(["phone"], ["GB"]).find(text)] == ["0161 234 5000"]
    assert PII(["phone"], []).find("0161 234 5000, +44 161 234 5000")[0].text == "+44 161 234 5000"


def test_a_number_is_found_after_an_empty_line_and_next_to_another():
    texts = [match.text for match in PII().find("Contact\n\n415-863-2110, +49 30 1234567890")]
    assert texts == ["415-863-2110", "+49 30 1234567890"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"kinds": ["mail"]}, "there is no kind 'mail'; there are email, ip, phone, card"),
        ({"regions": ["UK"]}, "'UK' is not a region"),
    ],
)
def test_bad_settings_are_named(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        PII(**arguments)


ADVERSARIAL = [
    "a", "1", "1 ", "@", "a@", "a.", "a@b.", "x@a-", ":", "2001:", "1.", "1-", "(1", "+1", "12 34 ", "a:",
    "4111 1111 1111 1112 ", "650 253 0000 ", "(650) 253-00\n", "1.1.1.1 ", " ", "tel ", "%+", "a@b.c:", "2",
]  # fmt: skip


@pytest.mark.parametrize("unit", ADVERSARIAL)
def test_a_long_line_takes_no_longer_than_its_length(unit):
    pii, text = PII(), unit * (1_000_000 // len(unit))
    pii.find("load: +1 650 253 0000")
    start = time.process_time()
    pii.find(text)
    assert time.process_time() - start < 5


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data")
def test_an_encyclopaedia_has_isbns_and_dois_but_few_phone_numbers():
    with bz2.open(SHARED_DATA / "pretrain" / "enwiki-excerpt.xml.bz2", "rt", encoding="utf-8") as file:
        text = file.read()
    # Of a press agency; it is the only one in 6 MB.
    assert {match.text for match in PII(["phone", "card"]).find(text)} == {"201-938-5500"}


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data")
@pytest.mark.parametrize("name", ["wikitext2-valid.txt", "tinyshakespeare.txt"])
def test_clean_text_stays_as_it_is(name):
    text = (SHARED_DATA / "pretrain" / name).read_text(encoding="utf-8")
    assert PII().replace(text) == (text, Counter())
