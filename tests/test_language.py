import gzip
import time
from collections import Counter

import pytest

from hfchat.language import identify
from tests.conftest import SHARED_DATA

# Four sentences for each language, a line each.
SENTENCES = {
    "en": """\
The ferry to the island leaves twice a day, unless the wind is from the north.
My grandmother kept her letters in a biscuit tin under the stairs, tied with string.
Nobody in the village could remember when the bridge had last been painted.
If you want to grow tomatoes here, you had better wait until the end of May.""",
    "de": """\
Die Fähre zur Insel fährt zweimal am Tag, wenn der Wind nicht von Norden kommt.
Meine Großmutter bewahrte ihre Briefe in einer alten Keksdose unter der Treppe auf.
Niemand im Dorf konnte sich erinnern, wann die Brücke zuletzt gestrichen worden war.
Wer hier Tomaten anbauen möchte, sollte damit bis Ende Mai warten.""",
    "fr": """\
Le bac pour l'île part deux fois par jour, sauf quand le vent vient du nord.
Ma grand-mère gardait ses lettres dans une boîte à biscuits, sous l'escalier.
Personne au village ne se rappelait quand le pont avait été repeint.
Si vous voulez faire pousser des tomates ici, attendez plutôt la fin du mois de mai.""",
    "es": """\
El barco a la isla sale dos veces al día, salvo cuando el viento viene del norte.
Mi abuela guardaba sus cartas en una caja de galletas debajo de la escalera.
Nadie en el pueblo recordaba cuándo habían pintado el puente por última vez.
Si quieres cultivar tomates aquí, es mejor que esperes hasta finales de mayo.""",
    "it": """\
Il traghetto per l'isola parte due volte al giorno, a meno che il vento non venga da nord.
Mia nonna teneva le sue lettere in una scatola di biscotti sotto le scale.
Nessuno nel paese ricordava quando il ponte fosse stato dipinto l'ultima volta.
Se vuoi coltivare i pomodori qui, è meglio aspettare la fine di maggio.""",
    "pt": """\
O barco para a ilha parte duas vezes por dia, a não ser que o vento venha do norte.
A minha avó guardava as suas cartas numa caixa de bolachas debaixo das escadas.
Ninguém na aldeia se lembrava de quando a ponte tinha sido pintada pela última vez.
Se quiser plantar tomates aqui, é melhor esperar até o fim de maio.""",
    "nl": """\
De veerboot naar het eiland vaart twee keer per dag, tenzij de wind uit het noorden komt.
Mijn grootmoeder bewaarde haar brieven in een koektrommel onder de trap.
Niemand in het dorp wist nog wanneer de brug voor het laatst was geschilderd.
Wie hier tomaten wil kweken, kan beter wachten tot het einde van mei.""",
    "sv": """\
Färjan till ön går två gånger om dagen, om det inte blåser från norr.
Min mormor förvarade sina brev i en kakburk under trappan, med ett snöre om.
Ingen i byn kunde minnas när bron senast hade blivit målad.
Om du vill odla tomater här är det bättre att vänta till slutet av maj.""",
    "pl": """\
Prom na wyspę odpływa dwa razy dziennie, chyba że wiatr wieje z północy.
Moja babcia trzymała swoje listy w puszce po ciastkach pod schodami.
Nikt we wsi nie pamiętał, kiedy ostatnio malowano ten most.
Jeśli chcesz tu uprawiać pomidory, lepiej poczekaj do końca maja.""",
    "cs": """\
Trajekt na ostrov odplouvá dvakrát denně, pokud nefouká vítr od severu.
Moje babička měla své dopisy v plechovce od sušenek pod schody.
Nikdo ve vesnici si nepamatoval, kdy byl most naposledy natřen.
Pokud zde chcete pěstovat rajčata, raději počkejte do konce května.""",
    "fi": """\
Lautta saarelle lähtee kaksi kertaa päivässä, ellei tuule pohjoisesta.
Isoäitini säilytti kirjeitään keksipurkissa portaiden alla.
Kukaan kylässä ei muistanut, milloin silta oli viimeksi maalattu.
Jos haluat kasvattaa täällä tomaatteja, odota mieluummin toukokuun loppuun.""",
    "hu": """\
A komp naponta kétszer indul a szigetre, hacsak nem fúj északról a szél.
A nagymamám egy kekszes dobozban tartotta a leveleit a lépcső alatt.
A faluban senki sem emlékezett rá, mikor festették le utoljára a hidat.
Ha itt paradicsomot akarsz termeszteni, jobb, ha megvárod május végét.""",
    "tr": """\
Adaya giden vapur, rüzgâr kuzeyden esmediği sürece günde iki kez kalkıyor.
Büyükannem mektuplarını merdivenin altındaki bir bisküvi kutusunda saklardı.
Köyde hiç kimse köprünün en son ne zaman boyandığını hatırlamıyordu.
Burada domates yetiştirmek istiyorsan mayıs ayının sonunu beklemen daha iyi olur.""",
    "vi": """\
Chuyến phà ra đảo khởi hành hai lần mỗi ngày, trừ khi có gió thổi từ phía bắc.
Bà tôi cất những lá thư của mình trong một hộp bánh quy dưới gầm cầu thang.
Không ai trong làng nhớ được lần cuối cùng cây cầu được sơn là khi nào.
Nếu bạn muốn trồng cà chua ở đây thì tốt hơn nên đợi đến cuối tháng năm.""",
    "ru": """\
Паром на остров ходит два раза в день, если ветер не дует с севера.
Моя бабушка хранила свои письма в жестяной коробке из-под печенья под лестницей.
Никто в деревне не мог вспомнить, когда в последний раз красили мост.
Если вы хотите выращивать здесь помидоры, лучше подождите до конца мая.""",
    "uk": """\
Пором на острів відпливає двічі на день, якщо вітер не дме з півночі.
Моя бабуся зберігала свої листи в бляшанці з-під печива під сходами.
Ніхто в селі не міг пригадати, коли востаннє фарбували міст.
Якщо ви хочете вирощувати тут помідори, краще зачекайте до кінця травня.""",
    "el": """\
Το πλοίο για το νησί φεύγει δύο φορές την ημέρα, εκτός αν φυσάει βοριάς.
Η γιαγιά μου φύλαγε τα γράμματά της σε ένα κουτί από μπισκότα κάτω από τη σκάλα.
Κανείς στο χωριό δεν θυμόταν πότε είχε βαφτεί η γέφυρα για τελευταία φορά.
Αν θέλεις να καλλιεργήσεις ντομάτες εδώ, καλύτερα να περιμένεις ως το τέλος Μαΐου.""",
    "ar": """\
تغادر العبارة إلى الجزيرة مرتين في اليوم ما لم تهب الرياح من الشمال.
كانت جدتي تحتفظ برسائلها في علبة بسكويت قديمة تحت الدرج.
لم يتذكر أحد في القرية متى تم طلاء الجسر آخر مرة.
إذا أردت أن تزرع الطماطم هنا فمن الأفضل أن تنتظر حتى نهاية شهر مايو.""",
    "he": """\
המעבורת לאי יוצאת פעמיים ביום, אלא אם כן הרוח נושבת מצפון.
סבתא שלי שמרה את המכתבים שלה בקופסת עוגיות מתחת למדרגות.
איש בכפר לא זכר מתי נצבע הגשר בפעם האחרונה.
אם אתם רוצים לגדל כאן עגבניות, כדאי לחכות עד סוף חודש מאי.""",
    "hi": """\
द्वीप के लिए नाव दिन में दो बार चलती है, जब तक कि हवा उत्तर से न आ रही हो।
मेरी दादी अपनी चिट्ठियाँ सीढ़ियों के नीचे बिस्कुट के एक डिब्बे में रखती थीं।
गाँव में किसी को याद नहीं था कि पुल को आख़िरी बार कब रंगा गया था।
अगर आप यहाँ टमाटर उगाना चाहते हैं, तो मई के अंत तक इंतज़ार करना बेहतर है।""",
    "ja": """\
島へ行くフェリーは、北風が吹いていないかぎり、一日に二回出ています。
祖母は手紙をひもで束ねて、階段の下にあるビスケットの缶に入れていました。
村のだれも、その橋が最後に塗り替えられたのがいつだったか覚えていなかった。
ここでトマトを育てたいのなら、五月の終わりまで待ったほうがいいでしょう。""",
    "ko": """\
섬으로 가는 배는 북풍이 불지 않는 한 하루에 두 번 떠납니다.
우리 할머니는 편지들을 계단 아래 과자 상자 안에 보관하셨습니다.
마을 사람들 중 아무도 다리를 마지막으로 칠한 때가 언제인지 기억하지 못했다.
여기에서 토마토를 키우고 싶다면 오월 말까지 기다리는 것이 좋습니다.""",
    "zh": """\
只要不刮北风，开往岛上的渡轮每天有两班，早上一班，傍晚一班。
我的祖母把她的信放在楼梯下面的一个饼干盒里，用绳子捆着。
村子里没有人记得那座桥上一次粉刷是在什么时候。
如果你想在这里种西红柿，最好等到五月底再开始。""",
}
LABELLED = [(language, line) for language, lines in SENTENCES.items() for line in lines.splitlines()]


def scores(labelled):
    """Precision and recall of each language that is labelled."""
    found = [(expected, identify(text)[0]) for expected, text in labelled]
    right = Counter(expected for expected, language in found if expected == language)
    labels, languages = Counter(expected for expected, _ in found), Counter(language for _, language in found)
    return {label: (right[label] / max(1, languages[label]), right[label] / labels[label]) for label in labels}


def test_labelled_sentences_are_identified():
    by_language = scores(LABELLED)
    print({language: values for language, values in by_language.items() if values != (1.0, 1.0)})
    recall = sum(recall for _, recall in by_language.values()) / len(by_language)
    precision = sum(precision for precision, _ in by_language.values()) / len(by_language)
    print(f"{len(LABELLED)} sentences, {len(by_language)} languages: precision {precision:.3f}, recall {recall:.3f}")
    assert all(len(lines.splitlines()) == 4 for lines in SENTENCES.values())
    assert recall >= 0.98
    assert precision >= 0.98
    assert all(value >= 0.75 for values in by_language.values() for value in values)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data")
def test_captions_of_multi30k_are_identified():
    labelled = []
    for language in ("en", "de", "fr"):
        with gzip.open(SHARED_DATA / "translation" / f"multi30k.val.{language}.gz", "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
        labelled += [(language, "\n".join(lines[i : i + 5])) for i in range(0, len(lines), 5)]
    by_language = scores(labelled)
    print(len(labelled), by_language)
    assert len(labelled) > 500
    assert all(value >= 0.99 for values in by_language.values() for value in values)


@pytest.mark.parametrize("noise", ["\n", "\r\n\t", "\ud800", "\u2028"])
def test_lines_and_lone_surrogates_do_not_matter(noise):
    text = SENTENCES["fr"].replace("\n", f" {noise} ")
    assert identify(text) == identify(SENTENCES["fr"])


def test_of_a_long_document_every_part_counts():
    english, german = SENTENCES["en"] * 100, SENTENCES["de"] * 100
    assert identify(english + german * 2)[0] == "de"
    assert identify(german + english * 2)[0] == "en"


@pytest.mark.parametrize("unit", ["a", "word ", "\n", "é", "1 ", "中"])
def test_a_long_line_takes_no_longer_than_its_length(unit):
    identify("load")
    start = time.process_time()
    identify(unit * (200_000 // len(unit)))
    assert time.process_time() - start < 2
