// The geometry of tracks, apart from any drawing. A track is {points, box}: a list of points [x, y], and the area
// [x, y, width, height] that goes along as a whole, or null; all in pixels of the canvas.

/**
 * The tracks that a text holds, in any of the forms that vc_core/extract/motion/tracks.py reads: one list of points or a list
 * of tracks, which are such lists or {"box": {"x", "y", "width", "height"}, "path": points}; points as {"x": 1, "y": 2}
 * or [1, 2], Python's quotes, a list of texts. Null where it holds none of these; an empty list is no track yet.
 */
export function parseTracks(text) {
  let found;
  try {
    found = typeof text === "string" ? JSON.parse(text.trim().replaceAll("'", '"') || "[]") : text;
  } catch {
    return null;
  }
  if (found?.box !== undefined) found = [found];
  if (!Array.isArray(found)) return null;
  if (!found.length) return [];
  if (found.every((item) => typeof item === "string")) {
    const parsed = found.map(parseTracks);
    return parsed.includes(null) ? null : parsed.flat();
  }
  const tracks = (asPoint(found[0]) ? [found] : found).map(asTrack);
  return tracks.includes(null) ? null : tracks;
}

function asTrack(item) {
  const boxed = item?.box !== undefined;
  const path = boxed ? item.path : item;
  const points = Array.isArray(path) ? path.map(asPoint) : [];
  const box = boxed ? asBox(item.box) : null;
  return points.length && !points.includes(null) && (box || !boxed) ? { points, box } : null;
}

function asPoint(item) {
  return numbers(Array.isArray(item) ? item : [item?.x, item?.y], 2);
}

function asBox(item) {
  const box = numbers(Array.isArray(item) ? item : [item?.x, item?.y, item?.width, item?.height], 4);
  return box && box[2] > 0 && box[3] > 0 ? box : null;
}

function numbers(list, count) {
  return list.length === count && list.every(Number.isFinite) ? list : null;
}

/** The text of tracks: one without a box is a list of points, else a list of tracks. Numbers have one decimal. */
export function formatTracks(tracks) {
  const texts = tracks.map(({ points, box }) => {
    const path = `[${points.map((point) => formatted(["x", "y"], point)).join(", ")}]`;
    return box ? `{"box": ${formatted(["x", "y", "width", "height"], box)}, "path": ${path}}` : path;
  });
  return texts.length === 1 && !tracks[0].box ? texts[0] : `[${texts.join(",\n ")}]`;
}

function formatted(keys, values) {
  return `{${keys.map((key, i) => `"${key}": ${Math.round(values[i] * 10) / 10}`).join(", ")}}`;
}

/** The size [width, height] of a canvas whose own is not given: the video's, or what is likely for the tracks. */
export function likelySize(tracks, [width, height]) {
  const ends = tracks.map(({ box }) => (box ? [box[0] + box[2], box[1] + box[3]] : []));
  const reach = Math.max(0, ...tracks.flatMap(({ points }) => points.flat()), ...ends.flat());
  const guess = [64, 128, 256, 512, 1024, 2048].find((side) => side >= reach) ?? Math.ceil(reach);
  return [width || guess, height || guess];
}

/** Tracks on a canvas of another size, where they were on that of `from`. */
export function onCanvas(tracks, from, to) {
  const [right, down] = [to[0] / from[0], to[1] / from[1]];
  return tracks.map(({ points, box }) => ({
    points: points.map(([x, y]) => [x * right, y * down]),
    box: box && [box[0] * right, box[1] * down, box[2] * right, box[3] * down],
  }));
}

/** Whether two sizes are of one shape, to a hundredth. */
export function sameShape([width, height], [otherWidth, otherHeight]) {
  return Math.abs((width * otherHeight) / (height * otherWidth) - 1) < 0.01;
}

/** How a size [width, height] lies in the middle of another one, as large as fits: {scale, left, top}. */
export function fitInside([width, height], [outerWidth, outerHeight]) {
  const scale = Math.min(outerWidth / width, outerHeight / height);
  return { scale, left: (outerWidth - width * scale) / 2, top: (outerHeight - height * scale) / 2 };
}

/** What a video of another shape leaves of a canvas, which covers it centred: [x, y, width, height] on the canvas. */
export function visibleArea([width, height], [videoWidth, videoHeight]) {
  const scale = Math.max(videoWidth / width, videoHeight / height);
  const [seenWidth, seenHeight] = [videoWidth / scale, videoHeight / scale];
  return [(width - seenWidth) / 2, (height - seenHeight) / 2, seenWidth, seenHeight];
}

export function clampTo([x, y], [width, height]) {
  return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
}

function distance([ax, ay], [bx, by]) {
  return Math.hypot(ax - bx, ay - by);
}

/** The point nearest to a place within a reach, as {track, point} of their numbers; the active track's first; or null. */
export function nearestPoint(tracks, place, reach, active) {
  let best = null;
  tracks.forEach(({ points }, track) =>
    points.forEach((candidate, point) => {
      const away = distance(candidate, place) - (track === active ? reach / 1000 : 0);
      if (away <= reach && (!best || away < best.away)) best = { track, point, away };
    }),
  );
  return best && { track: best.track, point: best.point };
}

/** How far a place is from the line between two points. */
export function distanceToSegment(place, [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((place[0] - ax) * dx + (place[1] - ay) * dy) / length)) : 0;
  return distance(place, [ax + along * dx, ay + along * dy]);
}

/** Where in a track a new point belongs: in the line that is within reach, else at the end. */
export function insertionIndex(points, place, reach) {
  for (let i = 1; i < points.length; i++) {
    if (distanceToSegment(place, points[i - 1], points[i]) <= reach) return i;
  }
  return points.length;
}

/** Tracks with a point more, in the track of a number or in a new one, and where it went: {tracks, track, point}. */
export function withPoint(tracks, track, place, reach) {
  if (track >= tracks.length) {
    return { tracks: [...tracks, { points: [place], box: null }], track: tracks.length, point: 0 };
  }
  const { points, box } = tracks[track];
  const point = insertionIndex(points, place, reach);
  return { tracks: tracks.with(track, { points: points.toSpliced(point, 0, place), box }), track, point };
}

/** The box [x, y, width, height] between two of its corners. */
export function boxBetween([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.abs(bx - ax), Math.abs(by - ay)];
}

/** Tracks with a box more, which rests: its path is its middle. */
export function withBox(tracks, box) {
  return [...tracks, { points: [[box[0] + box[2] / 2, box[1] + box[3] / 2]], box }];
}

/** Tracks in which a point lies elsewhere. A box goes with the first point of its path. */
export function withMoved(tracks, { track, point }, place) {
  const { points, box } = tracks[track];
  const [right, down] = [place[0] - points[0][0], place[1] - points[0][1]];
  const moved = box && !point ? [box[0] + right, box[1] + down, box[2], box[3]] : box;
  return tracks.with(track, { points: points.with(point, place), box: moved });
}

/** Tracks without a point, and without its track where that was its last. */
export function withoutPoint(tracks, { track, point }) {
  const { points, box } = tracks[track];
  if (points.length === 1) return tracks.toSpliced(track, 1);
  return tracks.with(track, { points: points.toSpliced(point, 1), box });
}
