"""How the tokenizer of the card `wiki_llama` was made. Run from the repository: python resources/wiki_llama/make.py

A byte-level BPE over the texts of the card `wiki_text_humanities`, on which the pipeline pre-trains. Other cards
whose vocabulary has 1,024 entries share it with `tokenizer: wiki_llama`.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lowrank.cards import data_card
from lowrank.data.fetch import fetch
from lowrank.data.readers import read

HERE = Path(__file__).parent
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
VOCABULARY = 1024

card = data_card("wiki_text_humanities")
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(
    (row.text for row in read(card, fetch(card))),
    trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
