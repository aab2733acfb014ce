"""Training of the small judge: pretrained parts joined, from collages of `vlm.embedded.collage`.

Stages, each resumed where it was stopped (`python -m train.small --output out/small`):

1. `features`: the frozen encoder sees every picture once; its features lie on disk.
2. `align`: the projector alone learns to turn the features of each patch into the input embeddings
   of what the patch shows. No language model runs, so this takes minutes.
3. `see`: the encoder's last blocks learn the same with it.
4. `learn`: language model and projector learn to answer, from 2 x 2 averages of the visual tokens,
   in the last steps from all. All questions about a picture stand behind it in one row and do not
   see each other.
5. `export`: what was learned becomes one small file.
"""
