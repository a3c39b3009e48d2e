"""How the smoke data and tokenizer were made. Run from the repository: python resources/smoke/make.py

The rows are the first sentences of Wikipedia lead paragraphs, taken from the wheel of the card
`wiki_topics`; which ones is decided by the SHA-256 of their titles, so that the choice can be repeated.
"""

import hashlib
import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lowrank.cards import data_card
from lowrank.data.fetch import fetch

HERE = Path(__file__).parent
TOPICS = ("Geography", "Mathematics", "People", "Technology")
ROWS_PER_TOPIC = 80
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 512

articles = json.loads((fetch(data_card("wiki_topics")) / "summaries_en-us.json").read_text(encoding="utf-8"))
rows = []
for topic in TOPICS:
    chosen = []
    for title in sorted(articles, key=lambda title: hashlib.sha256(title.encode()).hexdigest()):
        sentence = re.match(r".{40,160}?\.(?= |$)", articles[title]["extract"])
        if articles[title]["topic"] == topic and sentence:
            chosen.append({"text": sentence[0], "label": topic, "title": title})
    rows += chosen[:ROWS_PER_TOPIC]
lines = [json.dumps(row, ensure_ascii=False) for row in rows]
(HERE / "topics" / "topics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.train_from_iterator(
    (row["text"] for row in rows),
    trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False),
)
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
)
tokenizer.save(str(HERE / "bert" / "tokenizer.json"), pretty=False)
