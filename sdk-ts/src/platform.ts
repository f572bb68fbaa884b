/** The platform's globals, any of which some platform lacks. */
export const platform = globalThis as Omit<Partial<typeof globalThis>, "navigator"> & {
  readonly navigator?: Partial<Navigator>;
};
