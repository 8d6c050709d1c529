"""The model, its loss, and the folders that it lies in.

config.py           the native config, plus the audio tower of some original checkpoints
modeling.py         the native class with both losses inside `forward`
dual_ffn.py         decoder layers that look up once per batch which rows are text, which audio
packed_attention.py rows that share a sequence: torch's own flash attention, and no mask
audio_tower.py      log-mel features -> embeddings of a Whisper encoder
rows.py             rows picked out of a batch and put back; all masks of a step in one wait
loss.py             labelled hidden rows -> sums and counts; `combine` -> scalar
preferences.py      sums of pairs of clips -> how much the better one is preferred (DPO)
weights.py          which key lies where, in native and original folders, complete and of its shape
original_format.py  what a folder says it is; boson-multimodal's config.json <-> the native one
joined.py           matrices that read the same -> one in memory, for speaking
load.py             a folder or Hub id of any kind -> model, and tokenizer
convert.py          whole folders from one format to the other
makers.py           the names by which marks speak of a loaded model
card.py             README.md of a model
"""
