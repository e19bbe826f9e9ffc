"""Writes vectors.jsonl: texts and the token ids that OpenAI's own tiktoken gives them.

    pip install tiktoken==0.14.0 && python vectors.py > vectors.jsonl

tiktoken fetches the vocabularies, or reads them from TIKTOKEN_CACHE_DIR. The texts are written for this file or drawn at random from a
fixed seed. A text of a megabyte is a short one `times` over, and only its counts are kept.
"""

import json
import random
import string

import tiktoken

ENCODINGS = {name: tiktoken.get_encoding(name + "_base") for name in ("o200k", "cl100k")}

PROSE = [
    "The lighthouse keeper wrote everything down: the wind, the ships, and how many times the lamp went out that winter. It's not that "
    "he'd been asked to; he'd simply found that a day he hadn't described was a day he couldn't be sure of.",
    "Dear Ms. O'Neill,\r\n\r\nWe've received your order #4471-B (3 × 0.75 l @ €12.50 each) on 3/14/2025.\r\n\tTotal: €37.50\r\n\r\nKind regards,\r\nZoë\r\n",
    "HTTPServer XMLHttpRequest iPhone McDonald's DON'T WON'T we'RE I'LL camelCaseWords snake_case_words kebab-case-words SCREAMING_CASE",
    "naïve café résumé Straße Øresund Łódź Đà Nẵng İstanbul ǅungla ŉ ﬀ ʰello",
    "敏捷的棕色狐狸跳过了那只懒狗。今天的天气很好，我们去公园散步吧！人工智能正在改变世界，但谁来校对账单呢？二〇二五年三月。",
    "吾輩は計数器である。名前はまだ無い。カタカナとひらがなと漢字を混ぜて、半角ｶﾀｶﾅも入れる。「はい」と言った。ー〜々",
    "오늘은 날씨가 좋아서 산책을 나갔습니다. 토큰을 세는 일은 생각보다 어렵다.",
    "السلام عليكم، كيف حالك اليوم؟ هذا نصٌّ مُشَكَّلٌ بالحركات ١٢٣٤٥ ونهاية الجملة.",
    "שלום עולם, זה משפט קצר עם נִקּוּד.",
    "नमस्ते दुनिया, क्या हाल है? १२३४ हिन्दी में लिखा गया वाक्य।",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก เราจะนับโทเค็นกัน",
    "Съешь ещё этих мягких французских булок, да выпей чаю. ЙОГУРТ йогурт Ёж",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΟΔΥΣΣΕΎΣ ᾳ ᾼ",
    "გამარჯობა ᲒᲐᲛᲐᲠᲯᲝᲑᲐ Ꭰꭰ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐀𐐨 ⅫⅫ ½¾ ²³ ٣٤٥ 一二三 𝟘𝟙𝟚𝟛",
]

CODE = [
    "fn main() {\n    let xs: Vec<u32> = (0..10).map(|x| x * x).collect();\n    println!(\"{:?} // not a comment\", xs);\n}\n\n\n// end\n",
    "def fold(xs, *, start=0):\n\ttotal = start\n\tfor i, x in enumerate(xs):\n\t\ttotal += x ** i  # powers\n\n\treturn total\n",
    "if (a&&b||!c) { return a?.b ?? [...c, {d: `x${e}`}]; } /* **/ </div>\r\n\r\n\r\n  <a href='/x/y//z/'>'s</a>",
    "SELECT t.id, COUNT(*) FROM \"t\" WHERE t.name LIKE '%''s' AND t.n >= 10000000;",
    '{"id":"chatcmpl-9","object":"chat.completion","usage":{"prompt_tokens":1234,"completion_tokens":0},"choices":[{"delta":{"content":"\\u00e9\\n"},"index":0}]}',
    json.dumps({"users": [{"name": "Ada", "tags": ["a", "b"], "score": 1.5e-07, "ok": True, "none": None}]}, indent=4),
    "https://example.org/a/b?c=d&e=%20f#g 192.168.0.1 ::1 user@example.org C:\\Windows\\System32 ./run.sh --flag=1 -vvv 2>&1 | tee /dev/null",
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gunVTLw7onLRnrq0/IzW7yWR7QkrmBL7jTKEmL0==",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n```rust\nlet x = 1;\n```\n\n---\n***\n=====\n",
]

EDGES = [
    "", " ", "  ", "\n", "\r\n", "\n\n", " \n", "\n ", "  \n  \n  x", "a ", "a  ", " a", "  a", "   \t\n\t  b", "x\n\n\n   y", "x \u00a0 y", "\u3000\u3000字", "a\u2028\u2028b",
    "\u0085\u0085x", "a\t\tb\t", "\r\r\r", "\n\r\n\r x", "!\n\n", "!\r\n/\n//", "//\n//\n", "/ /", "  !!", " ! !",
    "don't Don'T DON\u0027T don\u2019t I'm I'M you'll YOU'LL they're we've he'd it's", "'s 's'S't'T're'RE've'm'll'd'LL'Ve", "a'\u017f b'\u017fx \u017f's", "'\u017f", "\u212a's K's k\u212a",
    "l'l'll'lll'", "n'", "n'r", "n're", "n'rex", "1's 12't 123'd 1234'll", "0 00 000 0000 00000 0000000", "1a2b3c 1,234,567.89 3.14159265358979",
    "的A", "的Ab", "的AB", "的ABc的", "ʰA", "Aʰ", "AʰB", "\u0301", " \u0301", "a\u0301", "A\u0301B\u0301c\u0301", "\u0301\u0301a", "!\u0301a", "1\u0301", "e\u0301\u0302\u0303'\u0301s",
    "<|endoftext|>", "a<|endoftext|>b <|fim_prefix|><|endofprompt|>", "<|im_start|>user\n<|im_end|>", "<|start|>assistant<|channel|>final<|message|>",
    "😀", "😀😀😀", "👩‍👩‍👧‍👦 👍🏽 ❤️ 🏳️‍🌈", "🇩🇪🇫🇷🇯🇵🇧🇷", "1️⃣#️⃣", "☃︎☃️", "a😀b 😀c", "\u200d\u200d", "\ufeffbom", "\u202eabc\u202c", "\x00\x01\x7f", "\ufffd\ufffd",
    "\U0010ffff\U000e0001\ue000", " " * 79, " " * 80 + "x", " " * 200 + "\n", "\n" * 100, "\t" * 90 + "}", "=" * 130, "-" * 81, "a" * 127, "a" * 128, "a" * 129, "ab" * 150, "A" * 300, "的" * 50,
    "哈哈哈哈哈哈哈哈", "!?" * 100, "\u3000" * 100, "\r\n" * 60, "supercalifragilisticexpialidocious" * 5, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
]

ATOMS = [
    " ", "  ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "'s", "'S", "'\u017f", "'ll", "'Re", "'", "\u212a", "\u017f", "K", "的", "中文", "カタカナ", "ー", "א", "ع", "ह",
    "\u0301", "\u0308", "é", "ß", "ǅ", "ʰ", "A", "B", "ab", "Cd", "123", "4", "½", "Ⅷ", "٣", "/", "!", "//", "...", "_", "<|endoftext|>", "😀", "👩‍👧", "🇩🇪", "\u200d", "\ufe0f", "\x00",
    "\ufeff", "\U000e0001", "\U0010ffff", "\ufffd", "ﬀ", "İ", "ı", "Σ", "ს", "Ა",
]

MEGABYTES = [
    "a", "A", "aA", " ", "\n", "\n ", "\r\n", "\t", "!", "-", "1", "的", "😀", "\u3000", "\u200d", "\u0301", "a\u0301", "'s", "的A", "\u0000",
]


def random_character(source):
    pick = source.random()
    if pick < 0.4:
        return chr(source.randrange(0x20, 0x7F))
    if pick < 0.5:
        return source.choice(" \n\r\t")
    if pick < 0.75:
        return chr(source.randrange(0x80, 0x3000))
    if pick < 0.9:
        return chr(source.choice([source.randrange(0x3000, 0xD800), source.randrange(0xE000, 0x10000)]))
    return chr(source.randrange(0x10000, 0x110000))


def texts():
    yield from PROSE + CODE + EDGES
    source = random.Random(20)
    for _ in range(120):
        yield "".join(source.choice(ATOMS) for _ in range(source.randrange(3, 30)))
    for _ in range(60):
        yield "".join(random_character(source) for _ in range(source.randrange(3, 30)))
    for letters in (string.ascii_lowercase, string.ascii_letters, string.digits + "abcdef", "ab", "\u0430\u0431\u0432\u0433"):
        for length in (60, 140, 700):
            yield "".join(source.choice(letters) for _ in range(length))


def ids(encoding, text):
    # tiktoken panics on a megabyte of white space in o200k; as a single piece it is the same tokens.
    return encoding._encode_single_piece(text) if len(text) > 100_000 and len(set(text)) == 1 and text.isspace() else encoding.encode_ordinary(text)


def write(text, times, value):
    row = {"text": text, "times": times} | {name: value(ids(encoding, text * times)) for name, encoding in ENCODINGS.items()}
    print(json.dumps(row, separators=(",", ":")))


for text in texts():
    write(text, 1, lambda tokens: tokens)
for text in MEGABYTES:
    write(text, 1_000_000 // len(text.encode()), len)
