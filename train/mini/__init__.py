"""Training of the embedded model: `python -m train.mini --output out/mini`.

In a few hours on 2 CPU cores, a model of 2 million parameters does not learn to look things up in
144 grid cells from questions alone. So its two halves are trained apart first, in five stages:

1. `vision`: the vision encoder learns to name what each grid cell shows (colour, shape, slot,
   character). Its class token learns to list what the picture contains, so that its attention goes
   to objects.
2. `closer`: the same on mosaics whose slots mostly contain signs and dots, which are small and
   rare.
3. `language`: the language model learns to answer from *symbols*. The symbol of a grid cell is
   the sum of learned embeddings of its labels. No vision is needed, and a clip needs few of its
   visual tokens.
4. `bridge`: the vision encoder and the projector learn to produce those symbols from pixels.
5. `joint`: everything is trained together on pictures and videos, dense, with all visual tokens. A
   third of the scenes are still shown as symbols, and the projector is kept close to them.

Training never shows certain pairs of a colour and a shape, and every test scene contains such a
pair. A model could take the colour as evidence against the shape, and count one object too few.
Stages 3 and 5 therefore hide one of the two in most lessons: symbols *blend* two shapes (or two
colours), some pictures have unnamed outlines (or pale colours with turned hues), and only the other
field is asked about.

Stages 1 and 3 do not depend on others (`--stage` runs a single one). A stage writes its weights at
its end, and continues from its last checkpoint when it is run again. All questions about a picture
are in one sequence and share its visual tokens. They do not attend to each other, and each has the
positions that it would have alone.
"""
