"""Training of the embedded model: `python -m train.mini --output out/mini`.

A model of 2 million parameters does not learn to look things up in 144 cells from questions alone
in the time one has on 2 cores. The recipe therefore takes the two halves apart first:

1. `vision`: the tower learns to name what each cell shows (colour, shape, slot, character), its
   class token to list what the picture holds, so that its attention goes to things;
2. `closer`: the same on mosaics, whose slots mostly hold signs and dots, which are small and rare;
3. `language`: the language model learns to answer from *symbols*: each cell is the sum of learned
   embeddings of its labels, so that nothing has to be seen yet and a clip needs few of its cells;
4. `bridge`: tower and projector learn to turn what is seen into those symbols;
5. `joint`: everything is trained together on pictures and videos, dense, with all their cells. A
   third of the scenes are still shown as symbols, and the projector is held near these.

A colour that training never shows with a shape becomes evidence against that shape, and the tests,
whose scenes all hold such a pair, then find one too few counted. Stages 3 and 5 therefore hide one
of the two in most lessons: symbols *blend* two shapes (or two colours), some pictures have strange
outlines (or pale colours, their hues turned), and only the other is asked about.

Stages 1 and 3 need no other (`--stage` runs one alone). Each stage writes its weights and goes on
where it was when it is run again. All questions about a picture lie in one sequence and share its
cells, but do not see one another: each stands where it would stand alone.
"""
