export default {
  esbuild: { jsx: 'automatic' },
  // Warnings about the insides of packages.
  build: { chunkSizeWarningLimit: 10_000, rollupOptions: { onwarn: () => {} } },
};
