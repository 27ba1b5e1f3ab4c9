// The geometry of tracks, apart from any drawing. A track is a list of points [x, y] in pixels of the canvas.

/**
 * The tracks that a text holds, in any of the forms that vc_core/extract/tracks.py reads: one list of points or a list
 * of such lists, points as {"x": 1, "y": 2} or [1, 2], Python's quotes, a list of texts. Null where it holds none of
 * these; an empty list is no track yet.
 */
export function parseTracks(text) {
  let found;
  try {
    found = typeof text === "string" ? JSON.parse(text.trim().replaceAll("'", '"') || "[]") : text;
  } catch {
    return null;
  }
  if (!Array.isArray(found)) return null;
  if (!found.length) return [];
  if (found.every((item) => typeof item === "string")) {
    const parsed = found.map(parseTracks);
    return parsed.includes(null) ? null : parsed.flat();
  }
  const tracks = (asPoint(found[0]) ? [found] : found).map((track) =>
    Array.isArray(track) && track.length ? track.map(asPoint) : [null],
  );
  return tracks.flat().includes(null) ? null : tracks;
}

function asPoint(item) {
  const pair = Array.isArray(item) ? item : [item?.x, item?.y];
  return pair.length === 2 && pair.every(Number.isFinite) ? pair : null;
}

/** The text of tracks: one is a list of points, several a list of such lists. Coordinates have one decimal. */
export function formatTracks(tracks) {
  const round = (value) => Math.round(value * 10) / 10;
  const texts = tracks.map(
    (track) => `[${track.map(([x, y]) => `{"x": ${round(x)}, "y": ${round(y)}}`).join(", ")}]`,
  );
  return texts.length === 1 ? texts[0] : `[${texts.join(",\n ")}]`;
}

/** The size [width, height] of a canvas whose own is not given: the video's, or what is likely for the points. */
export function likelySize(tracks, [width, height]) {
  const reach = Math.max(0, ...tracks.flat(2));
  const guess = [64, 128, 256, 512, 1024, 2048].find((side) => side >= reach) ?? Math.ceil(reach);
  return [width || guess, height || guess];
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
  tracks.forEach((points, track) =>
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
  if (track >= tracks.length) return { tracks: [...tracks, [place]], track: tracks.length, point: 0 };
  const point = insertionIndex(tracks[track], place, reach);
  return { tracks: tracks.map((points, i) => (i === track ? points.toSpliced(point, 0, place) : points)), track, point };
}

/** Tracks in which a point lies elsewhere. */
export function withMoved(tracks, { track, point }, place) {
  return tracks.map((points, i) => (i === track ? points.with(point, place) : points));
}

/** Tracks without a point, and without its track where that was its last. */
export function withoutPoint(tracks, { track, point }) {
  const rest = tracks.map((points, i) => (i === track ? points.toSpliced(point, 1) : points));
  return rest.filter((points) => points.length);
}
