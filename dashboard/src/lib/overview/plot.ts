// All that needs uPlot; the overview loads it after its figures are shown.
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';

export interface Series {
	title: string;
	/** A CSS variable. */
	color: string;
	values: (number | null)[];
	/** Drawn as a filled area. */
	filled?: boolean;
}

/** An instant beneath the plot: a day where ticks are days apart, else a time. */
function when(instant: number, step: number): string {
	const date = new Date(instant * 1000);
	return step >= 86_400
		? date.toLocaleDateString(undefined, { month: 'short', day: 'numeric' })
		: date.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });
}

/** Draw series over instants, in seconds; call the answer to take the plot away. */
export function draw(
	host: HTMLElement,
	instants: number[],
	series: Series[],
	format: (value: number) => string,
	/** How far the scale reaches at least. */
	least: number
): () => void {
	const style = getComputedStyle(document.documentElement);
	const color = (name: string) => style.getPropertyValue(name).trim();
	const axis: uPlot.Axis = {
		stroke: color('--ink-3'),
		grid: { stroke: color('--line'), width: 1 },
		ticks: { show: false },
		font: '11px "Geist Variable"'
	};
	const size = () => ({ width: host.clientWidth, height: 180 });
	const plot = new uPlot(
		{
			...size(),
			padding: [12, 14, 0, 0],
			legend: { show: false },
			cursor: { points: { size: 6 }, y: false, drag: { x: false, y: false } },
			scales: { y: { range: (_, low, high) => [Math.min(0, low), Math.max(high * 1.05, least)] } },
			axes: [
				{
					...axis,
					size: 30,
					grid: { show: false },
					values: (_, ticks, __, ___, step) => ticks.map((tick) => when(tick, step))
				},
				{ ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => format(tick)) }
			],
			series: [
				{},
				...series.map(
					({ title, color: name, filled, values }): uPlot.Series => ({
						label: title,
						stroke: color(name),
						width: 1.5,
						fill: filled ? `color-mix(in oklab, ${color(name)} 16%, transparent)` : undefined,
						// A line needs two: what stands alone is a point.
						points: { show: values.filter((value) => value !== null).length < 12, size: 5 },
						spanGaps: false
					})
				)
			]
		},
		[instants, ...series.map(({ values }) => values)],
		host
	);
	const watch = new ResizeObserver(() => plot.setSize(size()));
	watch.observe(host);
	return () => {
		watch.disconnect();
		plot.destroy();
	};
}
