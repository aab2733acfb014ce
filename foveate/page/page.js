// Draws the kept, merged and dropped tokens of every card from its data, and answers clicks.
(() => {
  "use strict";
  const chosen = {}; // what is chosen on each card outlives a new drawing of it
  const pictures = new Map();
  const state = (key) => (chosen[key] ??= { layer: 0, frame: 0, token: null, heat: false });

  const picture = (source, then) => {
    let image = pictures.get(source);
    if (!image) {
      if (pictures.size > 64) pictures.clear();
      image = new Image();
      image.src = source;
      pictures.set(source, image);
    }
    if (image.complete && image.naturalWidth) then(image);
    else image.addEventListener("load", () => then(image), { once: true });
  };

  const hue = (row) => (row * 0.618034 * 360) % 360;

  // The step that holds at a decoder layer.
  const stepAt = (input, layer) =>
    input.steps.filter((step) => step.layer <= layer).at(-1);

  // Which input and time step of its grid a frame of the media belongs to.
  const place = (data, shared, frame) => {
    const many = data.inputs.length > 1;
    const input = data.inputs[many ? Math.min(frame, data.inputs.length - 1) : 0];
    const time = many ? 0 : Math.floor((frame * input.grid[0]) / shared.frames.length);
    return { input, time, number: many ? frame : 0 };
  };

  const draw = (canvas, card, data, shared) => {
    const now = state(card.dataset.key);
    picture(shared.frames[now.frame] ?? shared.frames[0], (image) => {
      const pen = canvas.getContext("2d");
      canvas.width = image.naturalWidth * 2;
      canvas.height = image.naturalHeight * 2;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (!data.inputs.length) return;
      const { input, time, number } = place(data, shared, now.frame);
      const [, rows, columns] = input.grid;
      const step = stepAt(input, now.layer);
      const first = time * rows * columns;
      const sizes = new Map();
      for (const row of step.assign) sizes.set(row, (sizes.get(row) ?? 0) + 1);
      const width = canvas.width / columns, height = canvas.height / rows;
      const heat = now.heat ? shared.saliency[number] : null;
      const hottest = heat ? Math.max(...heat) : 0;
      const box = (r, c) => [c * width, r * height, width, height];
      const rowOf = (r, c) =>
        r < 0 || c < 0 || r >= rows || c >= columns ? -2 : step.assign[first + r * columns + c];
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          const row = rowOf(r, c);
          if (heat) {
            const share = Math.sqrt((heat[first + r * columns + c] ?? 0) / hottest);
            pen.fillStyle = `hsla(${260 - 220 * share}, 95%, ${12 + 48 * share}%, 0.72)`;
            pen.fillRect(...box(r, c));
          }
          if (row < 0) {
            if (!heat) {
              pen.fillStyle = "rgba(13, 16, 24, 0.82)";
              pen.fillRect(...box(r, c));
            }
          } else if (sizes.get(row) > 1) {
            if (!heat) {
              pen.fillStyle = `hsla(${hue(row)}, 85%, 55%, 0.30)`;
              pen.fillRect(...box(r, c));
            }
          }
        }
      outline(pen, rows, columns, rowOf, width, height, (row) =>
        row >= 0 && (sizes.get(row) > 1 || heat) ? `hsl(${hue(row)}, 85%, 60%)` : null, 3);
      step.anchor.forEach((at, row) => {
        const cell = at - first;
        if (cell < 0 || cell >= rows * columns || (sizes.get(row) ?? 0) < 2) return;
        const x = ((cell % columns) + 0.5) * width, y = (Math.floor(cell / columns) + 0.5) * height;
        pen.beginPath();
        pen.arc(x, y, Math.max(3, width / 9), 0, 7);
        pen.fillStyle = `hsl(${hue(row)}, 85%, 55%)`;
        pen.strokeStyle = "white";
        pen.lineWidth = 2;
        pen.fill();
        pen.stroke();
      });
      if (now.token !== null) {
        const row = step.assign[now.token];
        if (row >= 0)
          outline(pen, rows, columns, rowOf, width, height, (r) => (r === row ? "white" : null), 7);
      }
    });
  };

  const outline = (pen, rows, columns, rowOf, width, height, colour, line) => {
    pen.lineWidth = line;
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < columns; c++) {
        const row = rowOf(r, c), paint = colour(row);
        if (!paint) continue;
        pen.strokeStyle = paint;
        const x = c * width, y = r * height, e = line / 2;
        for (const [dr, dc, a, b] of [
          [-1, 0, [x, y + e], [x + width, y + e]],
          [1, 0, [x, y + height - e], [x + width, y + height - e]],
          [0, -1, [x + e, y], [x + e, y + height]],
          [0, 1, [x + width - e, y], [x + width - e, y + height]],
        ])
          if (rowOf(r + dr, c + dc) !== row) {
            pen.beginPath();
            pen.moveTo(...a);
            pen.lineTo(...b);
            pen.stroke();
          }
      }
  };

  const number = (value) => String(Math.round(value * 1000) / 1000);

  // What is known of the token that was clicked.
  const told = (card, data, shared) => {
    const now = state(card.dataset.key);
    if (now.token === null) return "Click a token.";
    const { input, number: at } = place(data, shared, now.frame);
    const [, rows, columns] = input.grid;
    const where = (token) => {
      const cell = token % (rows * columns);
      const frame = input.grid[0] > 1 ? `frame ${Math.floor(token / (rows * columns)) + 1}, ` : "";
      return `${frame}row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
    };
    const step = stepAt(input, now.layer);
    const row = step.assign[now.token];
    const heat = shared.saliency[at];
    const score = (token) => {
      if (!heat) return "";
      const rank = heat.filter((value) => value > heat[token]).length + 1;
      return ` · saliency ${number(100 * heat[token])}% (rank ${rank} of ${heat.length})`;
    };
    if (row < 0) return `<b>Dropped.</b> ${where(now.token)}${score(now.token)}`;
    const anchor = step.anchor[row];
    const members = step.assign.filter((other) => other === row).length;
    const position = input.positions[input.steps[0].assign[anchor]] ?? [];
    const axes = new Set(position).size === 1 ? number(position[0]) : position.map(number).join(", ");
    const kind = members > 1 ? `Merged from ${members} tokens` : "Kept as it is";
    return `<b>${kind}.</b> Stands at ${where(anchor)} · position ${axes} · size ${members}${score(anchor)}`;
  };

  const element = (tag, type, parent, text = "") => {
    const made = document.createElement(tag);
    made.className = type;
    made.textContent = text;
    parent.append(made);
    return made;
  };

  const build = (card) => {
    const holder = card.closest(".fv-results");
    const data = JSON.parse(card.dataset.kept);
    const shared = (holder.fvShared ??= JSON.parse(holder.dataset.shared));
    const now = state(card.dataset.key);
    const view = card.querySelector(".fv-view");
    view.replaceChildren();
    const stage = element("div", "fv-stage", view);
    const canvas = element("canvas", "fv-canvas", stage);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `visual tokens under ${card.dataset.key}`);
    if (now.frame >= shared.frames.length) now.frame = 0;
    if (now.layer >= data.layers.length) now.layer = 0;
    draw(canvas, card, data, shared);
    const again = () => build(card);
    if (shared.frames.length > 1) {
      const row = element("div", "fv-frames", view);
      shared.frames.forEach((_, index) => {
        const button = element("button", index === now.frame ? "fv-on" : "", row, `${index + 1}`);
        button.title = `frame ${index + 1}`;
        button.onclick = () => {
          for (const key of Object.keys(chosen)) Object.assign(chosen[key], { frame: index, token: null });
          holder.querySelectorAll(".fv-card").forEach(build);
        };
      });
    }
    let said = view;
    if (data.layers.length) {
      const strip = element("div", "fv-strip", view);
      const most = shared.most ??= Math.max(...[...holder.querySelectorAll(".fv-card")].flatMap((c) => JSON.parse(c.dataset.kept).layers), 1);
      data.layers.forEach((count, index) => {
        const bar = element("button", index === now.layer ? "fv-on" : "", strip);
        bar.title = `decoder layer ${index}: ${count} tokens`;
        bar.setAttribute("aria-label", bar.title);
        element("i", "", bar).style.height = `${Math.max(4, (100 * count) / most)}%`;
        bar.onclick = () => { now.layer = index; again(); };
      });
      said = element("p", "fv-said", view);
      element("span", "", said, `Decoder layer ${now.layer} of ${data.layers.length}: ${data.layers[now.layer]} tokens`);
    }
    if (!data.inputs.length) return;
    const info = element("p", "fv-token", view);
    info.innerHTML = told(card, data, shared); // numbers and words of this file alone
    if (shared.saliency.length) {
      const toggle = element("button", now.heat ? "fv-heat fv-on" : "fv-heat", said, "saliency");
      toggle.setAttribute("aria-pressed", String(now.heat));
      toggle.onclick = () => { now.heat = !now.heat; again(); };
    }
    canvas.onclick = (event) => {
      const { input, time } = place(data, shared, now.frame);
      const [, rows, columns] = input.grid;
      const area = canvas.getBoundingClientRect();
      const c = Math.min(columns - 1, Math.floor(((event.clientX - area.left) / area.width) * columns));
      const r = Math.min(rows - 1, Math.floor(((event.clientY - area.top) / area.height) * rows));
      now.token = time * rows * columns + r * columns + c;
      again();
    };
  };

  const look = () => {
    for (const card of document.querySelectorAll(".fv-card")) {
      // Gradio patches the HTML in place, which takes out what was drawn.
      if (card.fvDrawn === card.dataset.kept && card.querySelector("canvas")) continue;
      const holder = card.closest(".fv-results");
      if (holder.fvSource !== holder.dataset.shared) {
        holder.fvSource = holder.dataset.shared;
        holder.fvShared = undefined;
      } else if (holder.fvShared) holder.fvShared.most = undefined;
      card.fvDrawn = card.dataset.kept;
      build(card);
    }
  };
  new MutationObserver(look).observe(document.documentElement, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["data-kept"],
  });
})();
