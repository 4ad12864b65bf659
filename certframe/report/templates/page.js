"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const json = (element) => JSON.parse(element.textContent);
  const settings = json($("#settings"));

  // Numbers are written as the Python code writes them.
  const percent = (share) => `${(Math.floor(share * 1000 + 0.5) / 10).toFixed(1)} %`;
  const radius = (value) => `${(Math.floor(value * 1e4 + 0.5) / 1e4).toFixed(4)} ` +
    `(${(Math.floor(value * 2550 + 0.5) / 10).toFixed(1)}/255)`;
  const votesNeeded = (needed, samples, certifiedAll) =>
    certifiedAll ? "nothing abstains" : needed > samples ? `${samples} copies are too few` : `needs ${needed} votes`;
  const percentError = (values) => {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    if (values.length < 2) return percent(mean);
    const variance = values.reduce((sum, v) => sum + (v - mean) * (v - mean), 0) / (values.length - 1);
    return `${percent(mean).slice(0, -2)} ± ${percent(Math.sqrt(variance / values.length))}`;
  };
  const WORDS = { "-1": "abstains", 0: "unimportant", 1: "important" };

  // Pixels are written as 32-bit words, whatever the order of bytes of the machine.
  const word = (colour) => new Uint32Array(new Uint8ClampedArray([...colour, 255]).buffer)[0];
  const IMPORTANT = word(settings.important), UNIMPORTANT = word(settings.unimportant), NOTHING = 0;

  async function inflate(base64, width) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return width === 1 ? new Uint8Array(buffer) : width === 2 ? new Uint16Array(buffer) : new Uint32Array(buffer);
  }

  class Panel {
    constructor(article) {
      this.article = article;
      this.data = json($("script.data", article));
      const source = $("script.source", article);
      this.source = source && document.getElementById(`codes-${json(source)}`);
      this.shown = this.wanted = this.data.own;
      this.visible = false;
      this.codes = null;
      this.ownRadii = $(".radius", article)?.textContent;
      this.asRun = $$(".verdict, .class-detail", article).map((part) => part.textContent);
    }

    // The position for a τ of the slider (null: the run's own): the largest that this panel has and that is not above.
    position(tau) {
      if (tau === null || !this.source) return this.data.own;
      return Math.max(0, this.data.taus.findLastIndex((value) => value <= tau));
    }

    // Certified shares per level at a position: [[important, unimportant], …].
    shares(at) {
      const [, height, width] = this.data.shape;
      return this.data.areas[at].map(([one, zero]) => [one / (height * width), zero / (height * width)]);
    }

    async read() {
      const codes = this.codes ?? await inflate(this.source.textContent, this.data.width);
      this.codes = this.visible ? codes : null;
      return codes;
    }

    async show(tau) {
      this.wanted = this.position(tau);
      if (this.wanted === this.shown) return;
      const codes = await this.read();
      if (this.wanted === this.shown) return;
      this.shown = this.wanted;
      this.paint(codes, this.shown);
      this.write(this.shown);
    }

    // The one decision of the page. With votes: a pixel has the candidate's label when its votes reach what its level
    // needs. With classes: what the certifier said of the pixel's class at this τ.
    label(code, level, at) {
      const { table, thresholds } = this.data;
      if (table.length) return "-01".indexOf(table[code][at]) - 1;
      return code >>> 1 < thresholds[at][level] ? -1 : code & 1;
    }

    paint(codes, at) {
      const [levels, height, width] = this.data.shape, { colours, outside } = this.data;
      const size = height * width;
      const place = new Uint32Array(size), within = new Uint8Array(size);
      const images = $$(".level .map", this.article).map((map) => surface(map, width, height));
      for (let level = 0; level < levels; level++) {
        const pixels = images[level].words, inside = word(colours[level]), out = outside && word(outside[level]);
        for (let i = 0; i < size; i++) {
          const label = this.label(codes[level * size + i], level, at);
          pixels[i] = label < 0 ? NOTHING : label ? IMPORTANT : UNIMPORTANT;
          if (label === 1) { place[i] = inside; within[i] = 1; }
          if (out && label === 0 && !place[i] && !within[i]) place[i] = out;
        }
        images[level].put();
      }
      const map = $(".overlay .map", this.article);
      if (!map) return;
      const overlay = surface(map, width, height);
      overlay.words.set(place);
      overlay.put();
    }

    write(at) {
      const { taus, radii, thresholds, areas, samples, own, anyRadius, classes, shape: [, height, width] } = this.data;
      if (anyRadius) {
        $(".radius", this.article).textContent = at === own ? this.ownRadii : `at R = ${radius(radii[at])}`;
      } else {
        $(".tau", this.article).textContent = String(taus[at]);
        $(".radius", this.article).textContent = radius(radii[at]);
      }
      this.shares(at).forEach(([one, zero], level) => {
        const figure = $$(".level", this.article)[level];
        $(".certified", figure).textContent = percent(one + zero);
        $(".one", figure).textContent = percent(one);
        $(".zero", figure).textContent = percent(zero);
        const [ones, zeros] = areas[at][level];
        const needed = $(".needed", figure);
        if (needed) needed.textContent = votesNeeded(thresholds[at][level], samples, ones + zeros === height * width);
        $("rect.important", figure).setAttribute("width", one);
        $("rect.unimportant", figure).setAttribute("x", one);
        $("rect.unimportant", figure).setAttribute("width", zero);
      });
      const mark = $(".mark.follows", this.article);
      if (mark) {
        const { left, unit } = mark.ownerSVGElement.dataset;
        for (const end of ["x1", "x2"]) mark.setAttribute(end, Number(left) + Number(unit) * radii[at]);
      }
      if (classes.length) this.writeClass(at === own ? null : classes[at], radii[at]);
      const moved = $(".moved", this.article);
      moved.hidden = at === own;
      moved.textContent = `The maps above are at τ = ${taus[at]}, R = ${radius(radii[at])}; ` + (anyRadius
        ? "what they show is proven, together with every other position of the slider."
        : "the sentence below is about the run’s own τ.");
    }

    // null: as the page came.
    writeClass(certified, at) {
      const [verdict, detail] = $$(".verdict, .class-detail", this.article);
      const sure = certified ?? this.asRun[0] === "class certified";
      verdict.textContent = sure ? "class certified" : "class not certified";
      detail.textContent = certified === null ? this.asRun[1]
        : this.asRun[1].replace(/R = .*/, `R = ${radius(at)}`);
      $(".badge", this.article).classList.toggle("sure", sure);
    }

    // What is known about a pixel, in words.
    async describe(x, y) {
      const { names, shape: [levels, height, width], table, samples, voteRadii, outside } = this.data;
      const codes = await this.read(), labels = [];
      const parts = names.map((name, level) => {
        const code = codes[(level * height + y) * width + x];
        const label = this.label(code, level, this.shown);
        labels.push(label);
        const votes = table.length ? "" : `, ${code & 1 ? "important" : "unimportant"} in ${code >>> 1} of ${samples}`;
        const own = voteRadii?.[code >>> 1];
        return `${name}: ${WORDS[label]}${votes}${own == null ? "" : `, R = ${radius(own)}`}`;
      });
      if (outside) parts.unshift(band(labels.lastIndexOf(1), labels.includes(0) ? labels.indexOf(0) : levels, names));
      return `Pixel ${x}, ${y}. ${parts.join("; ")}.`;
    }
  }

  // Where a pixel certainly is, as the Python code says it.
  function band(inner, outer, names) {
    const parts = [];
    if (inner >= 0) parts.push(`within ${names[inner]}`);
    if (outer < names.length) parts.push(`outside ${names[outer]}`);
    return parts.join(", ") || "undecided";
  }

  // A canvas in place of the picture with which the page came; the same one from then on.
  function surface(map, width, height) {
    let canvas = map;
    if (map.tagName !== "CANVAS") {
      canvas = Object.assign(document.createElement("canvas"), { className: "map", width, height });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", map.alt);
      map.replaceWith(canvas);
    }
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    return { words: new Uint32Array(image.data.buffer), put: () => context.putImageData(image, 0, 0) };
  }

  function summarise(tau) {
    for (const line of $$(".summary tr[data-row]")) {
      const members = panels.filter((panel) => panel.data.row === Number(line.dataset.row));
      if (!members.some((panel) => panel.source)) continue;
      const cell = $(".radius", line), at = members[0].position(tau);
      cell.dataset.asRun ??= cell.textContent;
      cell.textContent = tau === null ? cell.dataset.asRun : radius(members[0].data.radii[at]);
      for (const cell of $$("[data-level]", line)) {
        const values = members.filter((panel) => panel.data.names.includes(cell.dataset.level)).map((panel) => {
          const [one, zero] = panel.shares(panel.position(tau))[panel.data.names.indexOf(cell.dataset.level)];
          return cell.dataset.what === "certified" ? one + zero : one;
        });
        cell.textContent = percentError(values);
      }
    }
  }

  const panels = $$(".panel").map((article) => new Panel(article));
  const live = panels.filter((panel) => panel.source);
  let current = null; // the slider's τ; null while every panel is at its own

  function watch() {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const panel = live.find((candidate) => candidate.article === entry.target);
        panel.visible = entry.isIntersecting;
        if (panel.visible) panel.show(current); else panel.codes = null;
      }
    }, { rootMargin: "300px" });
    live.forEach((panel) => observer.observe(panel.article));
  }

  async function showAll(tau) {
    for (const panel of live) {
      if (current !== tau) return;
      await panel.show(tau);
    }
  }

  function setUpSlider() {
    const slider = $("#tau"), { taus, own } = settings;
    const sigmas = [...new Map(live.map((panel) => [panel.data.sigma, panel])).values()]
      .sort((a, b) => a.data.sigma - b.data.sigma);
    const describe = () => {
      const tau = taus[slider.value];
      const radii = sigmas.map((panel) => {
        const text = `R = ${radius(panel.data.radii[panel.position(tau)])}`;
        return sigmas.length > 1 ? `σ ${panel.data.sigma}: ${text}` : text;
      }).join(" · ");
      $("#tau-value").textContent = String(tau);
      $("#radii").textContent = radii;
      slider.setAttribute("aria-valuetext", `tau ${tau}, ${radii}`);
    };
    const move = (tau) => {
      current = tau;
      describe();
      summarise(tau);
      live.filter((panel) => panel.visible).forEach((panel) => panel.show(tau));
    };
    slider.max = taus.length - 1;
    slider.value = taus.indexOf(own);
    describe();
    slider.addEventListener("input", () => move(taus[slider.value]));
    slider.addEventListener("change", () => showAll(current));
    $("#reset").addEventListener("click", () => {
      slider.value = taus.indexOf(own);
      move(null);
      showAll(null);
    });
    $("#slider").hidden = false;
    watch();
  }

  function setUpReadout(panel) {
    const line = $(".readout", panel.article), resting = line.textContent;
    let last = "";
    line.hidden = false;
    panel.article.addEventListener("pointermove", async (event) => {
      const frame = event.target.closest(".frame");
      const [, height, width] = panel.data.shape;
      const box = frame?.getBoundingClientRect();
      const x = box ? Math.floor((event.clientX - box.left) / box.width * width) : -1;
      const y = box ? Math.floor((event.clientY - box.top) / box.height * height) : -1;
      const inside = x >= 0 && y >= 0 && x < width && y < height;
      const asked = last = `${x} ${y}`;
      const text = inside ? await panel.describe(x, y) : resting;
      if (asked === last) line.textContent = text;
    });
    panel.article.addEventListener("pointerleave", () => { last = ""; line.textContent = resting; });
  }

  function setUpFilter() {
    const cell = $("#cell"), certifier = $("#certifier");
    const cells = [...new Set(panels.map(({ data }) => `${data.method} ${data.sigma}`))];
    const apply = () => {
      for (const { article, data } of panels) {
        article.hidden = Boolean(cell?.value && cells[cell.value] !== `${data.method} ${data.sigma}`)
          || Boolean(certifier?.value && certifier.value !== data.certifier);
      }
      for (const group of $$(".cell")) group.hidden = $$(".panel", group).every((article) => article.hidden);
    };
    [cell, certifier].forEach((select) => select?.addEventListener("change", apply));
    $("#filter").hidden = false;
  }

  // Codes are little-endian, as are the machines that browsers run on; elsewhere the page stays as it came.
  const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
  if (live.length && littleEndian && "DecompressionStream" in window) {
    setUpSlider();
    live.forEach(setUpReadout);
  }
  if ($("#filter")) setUpFilter();
})();
