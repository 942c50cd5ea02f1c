#!/usr/bin/env python3
"""Makes the golden files of the tokenizer with Hugging Face's `tokenizers` library.

  python make.py MODEL.gguf [FOLDER]   # SmolLM2-135M-Instruct; writes into this folder, and SmolLM2's own tokenizer.json into FOLDER

It takes some minutes: `prefix` is slow in the library.

  corpus.jsonl       strings: one JSON string a line
  NAME.json          a small tokenizer, trained here on generated text
  NAME.ids.jsonl     the ids of the corpus' strings (small tokenizers: of every SMALL_STRIDE-th), with special tokens added
  NAME.decode.jsonl  {"ids", "keep", "skip"}: what decode() gives with skip_special_tokens off and on
  NAME.codes.jsonl   a checksum of the ids for every block of 4096 code points, each put between letters, digits and spaces

SmolLM2's own tokenizer.json is Digits(individual) + ByteLevel. transformers' GGUF reader drops the Digits, so the reference is put
together here from the GGUF's vocabulary and merges."""
import json, os, random, sys
import numpy as np
import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SEED, RANDOM_STRINGS, DECODES, SMALL_STRIDE = 20261124, 1500, 300, 5
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SCRIPTS = {  # a sentence of each: "The harbour is calm today", or near it
    "English": "The harbour is calm today, isn't it? We'll see; they've said so.", "German": "Der Hafen ist heute ruhig, größer als früher.",
    "French": "Le port est calme aujourd’hui, n’est-ce pas ? Déjà vu, cœur, naïve.", "Spanish": "¿El puerto está tranquilo hoy? ¡Mañana también!",
    "Polish": "Port jest dziś spokojny, zażółć gęślą jaźń.", "Turkish": "Liman bugün sakin; İstanbul ılık.", "Vietnamese": "Hôm nay cảng yên tĩnh lắm.",
    "Greek": "Το λιμάνι είναι ήρεμο σήμερα.", "Russian": "Гавань сегодня спокойна.", "Ukrainian": "Гавань сьогодні спокійна, її видно.",
    "Hebrew": "הנמל רגוע היום", "Arabic": "الميناء هادئ اليوم ١٢٣", "Persian": "بندر امروز آرام است ۴۵۶", "Hindi": "बंदरगाह आज शांत है १२३",
    "Bengali": "বন্দর আজ শান্ত", "Tamil": "துறைமுகம் இன்று அமைதியாக உள்ளது", "Thai": "ท่าเรือวันนี้สงบ ๑๒๓", "Georgian": "ნავსადგური დღეს მშვიდია",
    "Armenian": "Նավահանգիստն այսօր հանգիստ է", "Amharic": "ወደቡ ዛሬ ጸጥ ብሏል", "Korean": "항구는 오늘 조용하다", "Japanese": "港は今日静かです。カタカナ、ひらがな。",
    "Chinese": "港口今天很平静。", "Khmer": "កំពង់ផែ​ស្ងប់", "Burmese": "ဆိပ်ကမ်း", "Tibetan": "གྲུ་ཁ་", "Cherokee": "ᏣᎳᎩ", "Gothic": "𐌲𐌿𐍄𐌹𐍃𐌺", "Math": "∀x∈ℝ: ⌈x⌉ ≥ x, 𝔸𝒷𝓬 x² ½ Ⅻ ①",
}
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "❤️", "☕︎", "1️⃣", "🧑🏿‍🚀", "🫠"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\v", "\f", "\u00a0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\u0085", "\u180e", "\u200b", "\ufeff", "\x1c", "\x1f"]
CODE = ["def f(x):\n    return x**2  # square\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i]*3.14e-10f;\n}", "SELECT * FROM t WHERE a='it''s';", "<div class=\"x\">&nbsp;</div>",
        "https://example.org/a?b=1&c=%20#d", "{\"a\": [1, 2.5, null], \"b\": \"\\u00e9\"}", "x=1;;y==2;z===3", "C:\\Users\\n\\t", "$\\frac{1}{2}$", "| a | b |\n|---|---|\n| 1 | 2 |"]


def corpus():
    rng = random.Random(SEED)
    out = ["", "a", " ", "  ", "\n", "0", "é", "e\u0301", "\x00", "\x7f", "ﬁ", "Å", "A\u030a", "\u0301", "\ufffd", "\U0010ffff", "\ue000", "ſ", "'ſ", "'S 'T 'RE 'VE 'M 'LL 'D", "K", "'s't're've'm'll'd", "I'M YOU'RE it'S"]
    out += list(SCRIPTS.values()) + EMOJI + CODE + SPECIALS
    out += [s * n for s in SPACES for n in (1, 2, 7)] + ["a" + s + "b" for s in SPACES] + ["x " + s + " 1" + s for s in SPACES]
    out += [chr(c) for c in range(1, 0x180)] + ["w" + chr(c) + "w" for c in range(1, 0x20)]
    out += [d * n for d in ("7", "12", "a1", "٣", "½", "Ⅷ") for n in (1, 2, 3, 4, 9, 70)] + ["3.14159", "1,000,000", "2024-01-31T23:59:59Z", "0x7fff", "1e-5", "  12  345 ", "v1.2.3", "100%"]
    out += ["a" * n for n in (63, 64, 65, 200, 1000)] + [" " * 300 + "x", "\n" * 300, "ab" * 300, "!" * 200, "é" * 150, "😀" * 60, "the" * 100]
    out += ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_start|>", "a<|im_end|>b", " <|im_end|> ", "<|im_end", "<|im_<|im_end|>", "<|endoftext|>x<|endoftext|>", "<|IM_END|>", "<|im_start|>12<|im_end|>3"]
    pieces = list(SCRIPTS.values()) + EMOJI + SPACES + CODE + SPECIALS
    words = " ".join(SCRIPTS.values()).split()
    for i in range(RANDOM_STRINGS):
        kind = i % 5
        if kind == 0:  # words of all scripts, with odd spaces and digits
            out.append("".join(rng.choice(words) + rng.choice(SPACES + [str(rng.randrange(5000)), ", ", ". "]) for _ in range(rng.randrange(1, 9))))
        elif kind == 1:  # slices of anything, joined
            out.append("".join((lambda p: p[rng.randrange(len(p)):][:rng.randrange(1, 14)])(rng.choice(pieces)) for _ in range(rng.randrange(1, 8))))
        elif kind == 2:  # any code points
            out.append("".join(chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(1, 0xd800), rng.randrange(0xe000, 0x110000)])) for _ in range(rng.randrange(1, 12))))
        elif kind == 3:  # combining marks in any order
            out.append("".join(rng.choice("aeinouyAEO가각\u1100\u1161") + "".join(chr(rng.randrange(0x300, 0x345)) for _ in range(rng.randrange(4))) for _ in range(rng.randrange(1, 8))))
        else:  # printable ASCII and white space, as code has it
            out.append("".join(rng.choice("abcdefgXYZ0123456789 _-+*/=<>()[]{}'\"\\.,;:!?@#$%^&|~`\t\n    ") for _ in range(rng.randrange(1, 40))))
    return out


def training_text():
    rng = random.Random(SEED + 1)
    words = [w for s in SCRIPTS.values() for w in s.split()] + "the harbour master counts ships and the tide goes out again while children's kites can't land".split()
    return [" ".join(rng.choice(words) for _ in range(12)) + rng.choice([".", "!", "\n", "\n\n", "\r\n", "  ", " 2024", " 37%"]) for _ in range(4000)]


def train(name, pre, size, normalizer=None, specials=SPECIALS, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(training_text(), trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    return t


def small():
    byte = lambda **k: pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **k})
    split = lambda p: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated"), byte(use_regex=False)])
    yield "digits", train("digits", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte()]), 900)
    yield "prefix", train("prefix", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte(add_prefix_space=True)]), 700)
    qwen = train("qwen", split(QWEN2), 1100, normalizers.NFC())
    qwen.add_tokens([AddedToken("<tool>", normalized=False, special=False), AddedToken("cafe\u0301", normalized=True, special=False)])
    yield "qwen", qwen
    llama = train("llama", split(LLAMA3), 1000, ignore_merges=True)
    bos = llama.token_to_id("<|endoftext|>")
    llama.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", bos)])])
    yield "llama", llama


def smollm2(path):
    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("pre") == "smollm" and get("model") == "gpt2"
    tokens, types = get("tokens"), get("token_type")
    t = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in get("merges")]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(w, normalized=False, special=True) for w, k in zip(tokens, types) if k == 3])
    return t


def write(name, lines):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        for line in lines:
            f.write(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")


def decodes(t, strings):
    """Random ids, among them many single bytes that make ill-formed UTF-8, and cut-off encodings."""
    rng = random.Random(SEED + 2)
    size = t.get_vocab_size()
    single = [i for w, i in t.get_vocab().items() if len(w) == 1]
    special = [t.token_to_id(s) for s in SPECIALS]
    for i in range(DECODES):
        if i % 3 == 0:
            ids = [rng.choice(single) for _ in range(rng.randrange(1, 12))]
        elif i % 3 == 1:
            ids = [rng.choice([rng.randrange(size), rng.choice(single), rng.choice(special)]) for _ in range(rng.randrange(1, 12))]
        else:
            ids = t.encode(rng.choice(strings), add_special_tokens=True).ids
            ids = ids[rng.randrange(len(ids) + 1):][:8]
        yield {"ids": ids, "keep": t.decode(ids, skip_special_tokens=False), "skip": t.decode(ids, skip_special_tokens=True)}


def checksum(ids, h):
    """h = h * M + id + 1 for every id, mod 2^64."""
    powers = np.concatenate([[np.uint64(1)], np.cumprod(np.full(len(ids), 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)])
    a = np.array(ids, np.uint64) + np.uint64(1)
    return int((np.uint64(h) * powers[len(ids)] + (a * powers[:len(ids)][::-1]).sum(dtype=np.uint64)))


def codes(t):
    for block in range(0, 0x110000, 4096):
        h = 0
        for start in range(block, block + 4096, 64):
            text = "".join("a%sb %s%s1%s  %s'%s" % ((chr(c),) * 6) for c in range(start, start + 64) if not 0xd800 <= c < 0xe000)
            h = checksum(t.encode(text, add_special_tokens=False).ids, h)
        yield {"block": block, "sum": "%016x" % h}


def main():
    np.seterr(over="ignore")
    strings = corpus()
    write("corpus.jsonl", strings)
    if len(sys.argv) > 2:
        smollm2(sys.argv[1]).save(os.path.join(sys.argv[2], "tokenizer.json"))
        with open(os.path.join(sys.argv[2], "tokenizer_config.json"), "w") as f:
            json.dump({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, f)
    made = [("smollm2", smollm2(sys.argv[1]), 1)] + [(name, t, SMALL_STRIDE) for name, t in small()]
    for name, t, stride in made:
        if stride > 1:
            t.save(os.path.join(HERE, name + ".json"), pretty=False)
        write(name + ".ids.jsonl", (t.encode(s, add_special_tokens=True).ids for s in strings[::stride]))
        write(name + ".decode.jsonl", decodes(t, strings))
        write(name + ".codes.jsonl", codes(t))
    write("made-by.jsonl", [{"tokenizers": tokenizers.__version__, "seed": SEED, "strings": len(strings), "small_stride": SMALL_STRIDE}])


main()
